// runner_test FOLDER: logits against Python's session (FOLDER from model.py), guards, threads.
#include "rest_deploy/runner.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <thread>

#include "check.h"
#include "files.h"
#include "rest_deploy/classify.h"
#include "sha256.h"

using namespace rest_deploy;

namespace {

struct Case {
  ImageBatch batch;
  std::vector<float> images;
  std::vector<float> logits;
};

std::vector<Case> cases_of(const std::string& folder) {
  std::vector<Case> cases;
  for (const auto& fields : read_cases(folder + "/cases.txt")) {
    Case found;
    found.images = read_floats(folder + "/" + fields[3]);
    found.logits = read_floats(folder + "/" + fields[4]);
    found.batch = {nullptr, std::stoul(fields[0]), std::stoul(fields[1]), std::stoul(fields[2])};
    cases.push_back(std::move(found));
  }
  for (Case& found : cases) found.batch.data = found.images.data();
  return cases;
}

double distance(const std::vector<float>& got, const std::vector<float>& expected) {
  if (got.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double most = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    most = std::max(most, std::fabs(double{got[i]} - double{expected[i]}));
    if (std::isnan(got[i])) return std::numeric_limits<double>::infinity();
  }
  return most;
}

void answers(const Runner& runner, const std::vector<Case>& cases) {
  for (const Case& found : cases) {
    const Result<Logits> logits = runner.infer(found.batch);
    if (!CHECK_THAT(logits.ok(), logits.status().text())) continue;
    CHECK(logits.value().batch == found.batch.batch && logits.value().classes == 22);
    const double far = distance(logits.value().values, found.logits);
    CHECK_THAT(far < 1e-4, "logits differ by " + std::to_string(far));
    // The control: the same comparison sees the difference between two images.
    std::vector<float> moved = found.images;
    for (float& value : moved) value = value * 0.9F + 0.1F;
    ImageBatch other = found.batch;
    other.data = moved.data();
    CHECK(distance(runner.infer(other).value().values, found.logits) > 1e-3);
    // And it sees two images of a batch change places.
    std::vector<float> exchanged = found.logits;
    std::rotate(exchanged.begin(), exchanged.begin() + 22, exchanged.end());
    CHECK(found.batch.batch == 1 || distance(exchanged, found.logits) > 1e-3);
  }
}

void broken_images(const Runner& runner) {
  std::vector<float> images(4 * 3 * 64 * 64, 0.5F);
  const std::size_t each = 3 * 64 * 64;
  images[each + 7] = std::numeric_limits<float>::quiet_NaN();
  images[2 * each + 9] = -std::numeric_limits<float>::infinity();
  const Result<Logits> logits = runner.infer({images.data(), 4, 64, 64});
  if (!CHECK(logits.ok())) return;
  const std::size_t classes = logits.value().classes;
  for (std::size_t i = 0; i < 4; ++i) {
    for (std::size_t c = 0; c < classes; ++c) {
      CHECK(std::isnan(logits.value().row(i)[c]) == (i == 1 || i == 2));
    }
  }
  CHECK(best(logits.value().row(0), runner.metadata()).ok());
  CHECK(best(logits.value().row(1), runner.metadata()).status().code() == Code::artifact);
}

void refused_shapes(const Runner& runner) {
  const std::vector<float> images(3 * 64 * 64, 0.5F);
  for (const ImageBatch& batch : {ImageBatch{images.data(), 0, 64, 64},
                                  ImageBatch{images.data(), 1, 31, 64},
                                  ImageBatch{images.data(), 1, 64, 0}, ImageBatch{nullptr, 1, 64, 64}}) {
    CHECK(runner.infer(batch).status().code() == Code::shape);
  }
}

void threads(const Runner& runner, const std::vector<Case>& cases) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> pool;
  for (std::size_t t = 0; t < 6; ++t) {
    pool.emplace_back([&, t] {
      for (std::size_t turn = 0; turn < 4; ++turn) {
        const Case& found = cases[(t + turn) % cases.size()];
        const Result<Logits> logits = runner.infer(found.batch);
        if (!logits || distance(logits.value().values, found.logits) > 1e-4) ++wrong;
      }
    });
  }
  for (std::thread& thread : pool) thread.join();
  CHECK(wrong == 0);
}

void predictions(const Metadata& metadata) {
  std::vector<float> logits(22, 0.0F);
  logits[3] = 2.0F;
  logits[5] = 1.0F;
  logits[9] = 1.0F;
  const auto found = best(logits.data(), metadata, 4);
  if (!CHECK(found.ok() && found.value().size() == 4)) return;
  const double total = std::exp(2.0) + 2 * std::exp(1.0) + 19;
  CHECK(found.value()[0].index == 3 && found.value()[0].label == "cell");
  CHECK(std::fabs(found.value()[0].probability - std::exp(2.0) / total) < 1e-12);
  CHECK(found.value()[1].index == 5 && found.value()[2].index == 9 && found.value()[3].index == 0);
  CHECK(best(logits.data(), metadata, 100).value().size() == 22);
  CHECK(best(logits.data(), metadata, 0).status().code() == Code::argument);
  // Probabilities are told as they are: no second softmax.
  std::vector<float> shares(22, 0.0F);
  shares[7] = 0.75F;
  shares[2] = 0.25F;
  const auto likely = best(shares.data(), metadata, 2, OutputKind::probabilities);
  CHECK(likely.ok() && likely.value()[0].index == 7 && likely.value()[0].probability == 0.75);
  CHECK(likely.value()[1].index == 2 && likely.value()[1].probability == 0.25);
  const auto wrong = best(shares.data(), metadata, 2, OutputKind::embedding);
  CHECK(wrong.status().code() == Code::argument);
  Metadata headless = metadata;
  headless.outputs = {{"embedding", OutputKind::embedding, 64, 0, false}};
  const Status refused = best(logits.data(), headless).status();
  CHECK(refused.code() == Code::artifact && refused.message().find("embedding") != std::string::npos);
  CHECK(refused.hint().find("--output logits") != std::string::npos);
  headless.num_classes = 0;
  CHECK(best(logits.data(), headless).status().code() == Code::artifact);
}

// The tensors of one case of a model with several outputs, by their names.
struct Several {
  Images images;
  Tensors tensors;
};

// FOLDER/cases.txt: batch, height, width, the images' file, then a file for each output.
std::vector<Several> several_of(const std::string& folder, const Metadata& metadata) {
  std::vector<Several> cases;
  for (const auto& fields : read_cases(folder + "/cases.txt")) {
    Several found;
    Images& images = found.images;
    images.batch = std::stoul(fields[0]);
    images.height = std::stoul(fields[1]);
    images.width = std::stoul(fields[2]);
    if (metadata.input == InputKind::pixels) {
      const std::string bytes = read_all(folder + "/" + fields[3]);
      images.pixels.assign(bytes.begin(), bytes.end());
    } else {
      images.data = read_floats(folder + "/" + fields[3]);
    }
    CHECK(fields.size() == 4 + metadata.outputs.size());
    for (std::size_t i = 4; i < fields.size(); ++i) {
      const Output& output = metadata.outputs[i - 4];
      found.tensors.push_back({output.name,
                               shape_of(output, images.batch, images.height, images.width),
                               read_floats(folder + "/" + fields[i])});
    }
    cases.push_back(std::move(found));
  }
  CHECK(cases.size() >= 4);
  return cases;
}

bool close(const Tensor& got, const Tensor& expected) {
  double largest = 1;
  for (const float value : expected.values) largest = std::max(largest, std::fabs(double{value}));
  return got.name == expected.name && got.shape == expected.shape &&
         distance(got.values, expected.values) < 1e-4 * largest;
}

void all_outputs(const Runner& runner, const std::vector<Several>& cases) {
  for (const Several& found : cases) {
    const Result<Tensors> all = runner.infer_all(found.images.view(), {});
    if (!CHECK_THAT(all.ok(), all.status().text())) continue;
    CHECK(all.value().size() == found.tensors.size());
    for (std::size_t i = 0; i < found.tensors.size(); ++i) {
      const Tensor& expected = found.tensors[i];
      CHECK_THAT(close(all.value()[i], expected), expected.name + " differs");
      // The control: the same comparison sees the largest value change by a thousandth.
      Tensor spoilt = expected;
      auto most = std::max_element(spoilt.values.begin(), spoilt.values.end());
      *most = *most * 1.001F + 1e-3F;
      CHECK(!close(spoilt, expected));
    }
    const Result<Logits> first = runner.infer(found.images.view());
    CHECK(first.ok() && distance(first.value().values, found.tensors[0].values) < 1e-4);
    // Some of them, in another order.
    const Result<Tensors> some = runner.infer_all(found.images.view(), {"c4", "logits"});
    if (CHECK(some.ok() && some.value().size() == 2)) {
      CHECK(some.value()[0].name == "c4" && some.value()[0].shape.size() == 4);
      CHECK(some.value()[1].name == "logits" && some.value()[1].shape.size() == 2);
    }
    CHECK(runner.infer_all(found.images.view(), {"c9"}).status().code() == Code::argument);
    CHECK(runner.infer_all(found.images.view(), {"c4", "c4"}).status().code() == Code::argument);
  }
  // The other kind of input is refused, and says what is taken.
  const std::vector<float> floats(3 * 64 * 64);
  const std::vector<std::uint8_t> bytes(floats.size());
  const bool pixels = runner.metadata().input == InputKind::pixels;
  const ImageBatch other = pixels ? ImageBatch{floats.data(), 1, 64, 64}
                                  : pixel_batch(bytes.data(), 1, 64, 64);
  const Status status = runner.infer_all(other, {}).status();
  CHECK(status.code() == Code::shape && status.message().find("takes") != std::string::npos);
}

// A broken image is NaN in every output, the others are not.
void poisoned_outputs(const Runner& runner) {
  std::vector<float> images(2 * 3 * 64 * 64, 0.5F);
  images[3 * 64 * 64 + 5] = std::numeric_limits<float>::quiet_NaN();
  const Result<Tensors> all = runner.infer_all({images.data(), 2, 64, 64}, {});
  if (!CHECK(all.ok())) return;
  for (const Tensor& tensor : all.value()) {
    for (std::size_t i = 0; i < tensor.each(); ++i) {
      CHECK(!std::isnan(tensor.row(0)[i]) && std::isnan(tensor.row(1)[i]));
    }
  }
}

// The whole way from a decoded image, for both kinds of input.
void photo(const Runner& runner) {
  Image image{300, 260, {}};
  for (std::size_t i = 0; i < 300 * 260 * 3; ++i) image.rgb.push_back(static_cast<std::uint8_t>(i / 7));
  const auto found = classify(runner, {image, image}, 3);
  CHECK(found.ok() && found.value().size() == 2 && found.value()[1].size() == 3);
  const Result<Tensor> vectors = embed(runner, {image, image});
  if (!CHECK_THAT(vectors.ok(), vectors.status().text())) return;
  CHECK(vectors.value().shape.size() == 2 && vectors.value().shape[0] == 2);
  double length = 0;
  for (std::size_t i = 0; i < vectors.value().each(); ++i) {
    length += double{vectors.value().row(1)[i]} * double{vectors.value().row(1)[i]};
  }
  const bool unit = runner.metadata().find(OutputKind::embedding)->unit_length;
  CHECK((std::fabs(length - 1) < 1e-5) == unit);
}

void several_outputs(const std::string& folder, RunnerOptions options) {
  for (const char* kind : {"/floats", "/pixels"}) {
    const std::string place = folder + kind, model = place + "/all.onnx";
    for (const bool fixed : {false, true}) {
      options.compiled_shapes = fixed ? std::vector<Shape>{{4, 3, 64, 96}, {2, 3, 64, 64}}
                                      : std::vector<Shape>{};
      const auto runner = open_runner(model, options);
      if (!CHECK_THAT(runner.ok(), runner.status().text())) continue;
      const Metadata& metadata = runner.value()->metadata();
      CHECK(metadata.gives() == "logits, probabilities, embedding, c2, c3, c4, c5");
      all_outputs(*runner.value(), several_of(place, metadata));
      photo(*runner.value());
      if (metadata.input == InputKind::normalized) poisoned_outputs(*runner.value());
    }
    // A sidecar that names an output fewer than the model has.
    write_all("fewer.onnx", read_all(model));
    std::string text = read_all(model + ".json");
    const std::size_t name = text.find("\"name\": \"c5\""), from = text.rfind(',', text.rfind('{', name));
    text.erase(from, text.find('}', name) + 1 - from);
    write_all("fewer.onnx.json", text);
    CHECK(open_runner("fewer.onnx").status().message().find("outputs") != std::string::npos);
  }
}

void refused_files(const std::string& model) {
  const std::string text = read_all(model + ".json");
  const auto code = [&](const std::string& name, const std::string& content,
                        const std::string& sidecar) {
    write_all(name, content);
    write_all(name + ".json", replaced(sidecar, sha256(read_all(model)), sha256(content)));
    return open_runner(name).status().code();
  };
  // Its hash is right and the content no model.
  CHECK(code("broken.onnx", "no model", text) == Code::artifact);
  CHECK(code("broken.onnx", read_all(model).substr(0, 100'000), text) == Code::artifact);
  const std::string built = replaced(text, "\"build\": null",
                                     "\"build\": {\"backend\": \"onnxruntime\", \"precision\": "
                                     "\"int8\"}");
  CHECK(code("foreign.onnx", read_all(model), built) == Code::artifact);
  CHECK(open_runner("model.txt").status().code() == Code::artifact);
  CHECK(open_runner("missing.onnx").status().code() == Code::artifact);
  RunnerOptions options;
  options.threads = 10'000;
  CHECK(open_runner(model, options).status().code() == Code::argument);
  options.threads = 0;
  options.requests = 0;
  CHECK(open_runner(model, options).status().code() == Code::argument);
  options.requests = 1;
  options.compiled_shapes = {{1, 4, 64, 64}};
  CHECK(open_runner(model, options).status().code() == Code::shape);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::string folder = argv[1], model = folder + "/rest_nano.onnx";
  const std::vector<Case> cases = cases_of(folder);
  CHECK(cases.size() >= 4);

  RunnerOptions options;
  options.requests = 2;  // fewer than threads: they wait
  const auto runner = open_runner(model, options);
  if (!CHECK_THAT(runner.ok(), runner.status().text())) return check::result();
  CHECK(runner.value()->name() == "openvino/cpu");
  CHECK(runner.value()->metadata().labels.size() == 22);
  answers(*runner.value(), cases);
  broken_images(*runner.value());
  refused_shapes(*runner.value());
  threads(*runner.value(), cases);
  predictions(runner.value()->metadata());

  // Two cores run the parts of the even batches side by side.
  options.compiled_shapes = {{1, 3, 224, 224}, {4, 3, 64, 96}, {4, 3, 64, 64}, {3, 3, 97, 131}};
  const auto compiled = open_runner(model, options);
  if (CHECK_THAT(compiled.ok(), compiled.status().text())) {
    answers(*compiled.value(), cases);
    broken_images(*compiled.value());
    threads(*compiled.value(), cases);
  }
  refused_files(model);
  several_outputs(folder, options);
  return check::result();
}
