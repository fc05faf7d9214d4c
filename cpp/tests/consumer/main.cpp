#include <rest_deploy/classify.h>

#include <cstdio>

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const auto runner = rest_deploy::open_runner(argv[1]);
  const auto image = rest_deploy::load_image(argv[2]);
  if (!runner || !image) return 1;
  const auto answers = rest_deploy::classify(*runner.value(), {image.value()}, 1);
  if (!answers) return 1;
  const rest_deploy::Prediction& found = answers.value()[0][0];
  std::printf("%.2f %s\n", found.probability, found.label.c_str());
  return 0;
}
