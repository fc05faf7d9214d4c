/* c_api_test MODEL IMAGE SEVERAL: the whole way from C, and what it refuses. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rest_deploy/c_api.h"

static int checks = 0, failures = 0;

#define CHECK(holds)                                                                       \
  do {                                                                                     \
    ++checks;                                                                              \
    if (!(holds)) {                                                                        \
      ++failures;                                                                          \
      printf("%s:%d: %s (%s)\n", __FILE__, __LINE__, #holds, rest_deploy_last_error());    \
    }                                                                                      \
  } while (0)

static uint8_t* read_bytes(const char* path, size_t* count) {
  FILE* file = fopen(path, "rb");
  if (file == NULL) return NULL;
  fseek(file, 0, SEEK_END);
  *count = (size_t)ftell(file);
  rewind(file);
  uint8_t* bytes = malloc(*count);
  if (fread(bytes, 1, *count, file) != *count) *count = 0;
  fclose(file);
  return bytes;
}

/* Every output of a model that takes pixels, from the file. */
static void several(const char* model, const uint8_t* image, size_t size) {
  rest_deploy_session* session = NULL;
  CHECK(rest_deploy_open(model, 0, 0, &session) == REST_DEPLOY_OK);
  if (session == NULL) return;
  CHECK(rest_deploy_takes_pixels(session) == 1 && rest_deploy_num_outputs(session) == 7);
  const size_t side = (size_t)rest_deploy_input_size(session), bytes = 3 * side * side;
  uint8_t* pixels = malloc(bytes);
  CHECK(rest_deploy_preprocess_pixels(session, image, size, pixels, bytes - 1) ==
        REST_DEPLOY_ARGUMENT);
  CHECK(rest_deploy_preprocess_pixels(session, image, size, pixels, bytes) == REST_DEPLOY_OK);
  float* outputs[7];
  size_t capacities[7];
  rest_deploy_output found;
  for (size_t i = 0; i < 7; ++i) {
    CHECK(rest_deploy_describe(session, i, &found) == REST_DEPLOY_OK);
    capacities[i] = rest_deploy_output_size(session, i, 1, side, side);
    outputs[i] = malloc(capacities[i] * sizeof(float));
    CHECK((found.kind == REST_DEPLOY_FEATURES) == (found.stride > 0));
  }
  CHECK(strcmp(found.name, "c5") == 0 && found.stride == 32);
  CHECK(capacities[6] == found.channels * 7 * 7);
  CHECK(rest_deploy_output_size(session, 6, 2, 225, 32) == 2 * found.channels * 8 * 1);
  CHECK(rest_deploy_output_size(session, 7, 1, side, side) == 0);
  CHECK(rest_deploy_describe(session, 7, &found) == REST_DEPLOY_ARGUMENT);
  CHECK(rest_deploy_infer_all(session, NULL, pixels, 1, side, side, outputs, capacities) ==
        REST_DEPLOY_OK);
  size_t best[1], count = 1;
  double share[1];
  CHECK(rest_deploy_best(session, outputs[0], best, share, &count) == REST_DEPLOY_OK);
  CHECK(strcmp(rest_deploy_label(session, best[0]), "coffee") == 0);
  CHECK(fabs(share[0] - (double)outputs[1][best[0]]) < 1e-5); /* the graph's own softmax */
  float length = 0;
  for (size_t i = 0; i < capacities[2]; ++i) length += outputs[2][i] * outputs[2][i];
  CHECK(fabsf(length - 1) < 1e-5F);

  /* Some alone; too little room; the other kind of input. */
  float* some[7] = {NULL, NULL, NULL, NULL, NULL, NULL, outputs[6]};
  CHECK(rest_deploy_infer_all(session, NULL, pixels, 1, side, side, some, capacities) ==
        REST_DEPLOY_OK);
  --capacities[6];
  CHECK(rest_deploy_infer_all(session, NULL, pixels, 1, side, side, some, capacities) ==
        REST_DEPLOY_ARGUMENT);
  some[6] = NULL;
  CHECK(rest_deploy_infer_all(session, NULL, pixels, 1, side, side, some, capacities) ==
        REST_DEPLOY_ARGUMENT);
  float* tensor = calloc(bytes, sizeof(float));
  CHECK(rest_deploy_infer(session, tensor, 1, side, side, outputs[0], capacities[0]) ==
        REST_DEPLOY_SHAPE);
  CHECK(strstr(rest_deploy_last_error(), "uint8") != NULL);
  for (size_t i = 0; i < 7; ++i) free(outputs[i]);
  free(tensor);
  free(pixels);
  rest_deploy_close(session);
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  rest_deploy_session* session = NULL;
  CHECK(strcmp(rest_deploy_last_error(), "") == 0);
  CHECK(rest_deploy_open("missing.onnx", 0, 0, &session) == REST_DEPLOY_ARTIFACT);
  CHECK(session == NULL && strstr(rest_deploy_last_error(), "missing.onnx") != NULL);
  CHECK(rest_deploy_open(NULL, 0, 0, &session) == REST_DEPLOY_ARGUMENT);
  CHECK(rest_deploy_open(argv[1], 0, -1, &session) == REST_DEPLOY_ARGUMENT);
  CHECK(rest_deploy_open(argv[1], 0, 0, &session) == REST_DEPLOY_OK);
  if (session == NULL) return 1;

  CHECK(strcmp(rest_deploy_version(), "0.1.0") == 0);
  CHECK(strcmp(rest_deploy_backend(session), "openvino/cpu") == 0);
  const size_t classes = rest_deploy_num_classes(session);
  CHECK(classes == 22);
  CHECK(strcmp(rest_deploy_label(session, 0), "astronaut") == 0);
  CHECK(rest_deploy_label(session, classes) == NULL);

  const size_t side = (size_t)rest_deploy_input_size(session), floats = 3 * side * side;
  CHECK(side == 224);
  float* tensor = malloc(floats * sizeof(float));
  float* logits = malloc(classes * sizeof(float));
  size_t size = 0;
  uint8_t* image = read_bytes(argv[2], &size);
  CHECK(image != NULL && size > 0);
  CHECK(rest_deploy_preprocess(session, image, size, tensor, floats - 1) == REST_DEPLOY_ARGUMENT);
  CHECK(rest_deploy_preprocess(session, image, size / 2, tensor, floats) == REST_DEPLOY_IMAGE);
  CHECK(rest_deploy_preprocess(session, image, size, tensor, floats) == REST_DEPLOY_OK);

  CHECK(rest_deploy_infer(session, tensor, 1, side, 31, logits, classes) == REST_DEPLOY_SHAPE);
  CHECK(rest_deploy_infer(session, tensor, 1, side, side, logits, 21) == REST_DEPLOY_ARGUMENT);
  CHECK(rest_deploy_infer(session, tensor, 1, side, side, logits, classes) == REST_DEPLOY_OK);

  size_t indices[3], count = 3;
  double probabilities[3];
  CHECK(rest_deploy_best(session, logits, indices, probabilities, &count) == REST_DEPLOY_OK);
  CHECK(count == 3 && probabilities[0] >= probabilities[1] && probabilities[0] <= 1.0);
  CHECK(strcmp(rest_deploy_label(session, indices[0]), "coffee") == 0);

  tensor[5] = NAN;
  CHECK(rest_deploy_infer(session, tensor, 1, side, side, logits, classes) == REST_DEPLOY_OK);
  CHECK(isnan(logits[0]) && isnan(logits[classes - 1]));
  CHECK(rest_deploy_best(session, logits, indices, probabilities, &count) == REST_DEPLOY_ARTIFACT);
  CHECK(rest_deploy_infer(NULL, tensor, 1, side, side, logits, classes) == REST_DEPLOY_ARGUMENT);
  CHECK(rest_deploy_num_classes(NULL) == 0 && rest_deploy_backend(NULL) == NULL);

  CHECK(rest_deploy_num_outputs(session) == 1 && rest_deploy_takes_pixels(session) == 0);
  CHECK(rest_deploy_output_size(session, 0, 3, side, side) == 3 * classes);
  CHECK(rest_deploy_num_outputs(NULL) == 0 && rest_deploy_takes_pixels(NULL) == 0);

  rest_deploy_close(session);
  rest_deploy_close(NULL);
  several(argv[3], image, size);
  free(image);
  free(logits);
  free(tensor);
  printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}
