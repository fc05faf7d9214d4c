#include <rest_deploy/c_api.h>
#include <stdio.h>

int main(int argc, char** argv) {
  rest_deploy_session* session = NULL;
  if (argc != 2) return 2;
  if (rest_deploy_open(argv[1], 0, 0, &session) != REST_DEPLOY_OK) {
    fprintf(stderr, "%s\n", rest_deploy_last_error());
    return 1;
  }
  printf("%s\n", rest_deploy_label(session, 0));
  rest_deploy_close(session);
  return 0;
}
