// classify ENGINE IMAGE…: what is on the photos, and how long it takes to say so.
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "../arguments.h"
#include "latency.h"
#include "rest_deploy/classify.h"

using namespace rest_deploy;
using apps::quantile;

namespace {

constexpr const char* kUsage =
    "usage: classify ENGINE IMAGE... [options]\n"
    "  ENGINE       FILE.onnx or FILE.engine of rest-deploy, its sidecar FILE.json beside it\n"
    "  --top N      classes to print for each image (5)\n"
    "  --repeat N   times to classify each image; prints latencies when given\n"
    "  --fixed      compile for single images of the card's size too: slower start, faster runs\n"
    "  --threads N  of one inference; 0: all cores (0)\n"
    "  --device N   number of the GPU, for an .engine (0)\n"
    "  --no-selftest  open the engine without asking whether it answers here as where it was built\n"
    "  --json       one JSON object instead of text\n"
    "exit codes: 0 done, 1 self-test failed, 2 wrong command line, 3 bad model or image, 4 something is missing here\n";

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// Milliseconds of each stage, one entry a run.
struct Durations {
  std::vector<double> decode, preprocess, inference, total;
};

struct Answer {
  std::string image;
  std::vector<float> scores;
  std::vector<Prediction> predictions;
};

Result<Answer> run(const Runner& runner, const std::string& path, int top, Durations& durations) {
  const Metadata& metadata = runner.metadata();
  const Clock::time_point start = Clock::now();
  const Result<Image> image = load_image(path);
  if (!image) return image.status();
  durations.decode.push_back(ms_since(start));
  const Clock::time_point decoded = Clock::now();
  Images batch;
  if (Status status = append(image.value(), metadata, batch); !status.ok()) return status;
  durations.preprocess.push_back(ms_since(decoded));
  const Clock::time_point ready = Clock::now();
  const Output& output = *metadata.scores();
  Result<Tensors> scores = runner.infer_all(batch.view(), {output.name});
  if (!scores) return scores.status();
  durations.inference.push_back(ms_since(ready));
  durations.total.push_back(ms_since(start));
  std::vector<float>& values = scores.value().front().values;
  Result<std::vector<Prediction>> found = best(values.data(), metadata, top, output.kind);
  if (!found) return found.status();
  return Answer{path, std::move(values), std::move(found.value())};
}

nlohmann::ordered_json figures(const std::vector<double>& samples) {
  return {{"median", quantile(samples, 0.5)}, {"p90", quantile(samples, 0.9)},
          {"p99", quantile(samples, 0.99)}};
}

void print_json(const Runner& runner, const std::vector<Answer>& answers,
                const Durations& durations, long repeat) {
  nlohmann::ordered_json report{{"backend", runner.name()},
                                {"model", runner.metadata().name},
                                {"sha256", runner.metadata().sha256},
                                {"images", nlohmann::ordered_json::array()}};
  for (const Answer& answer : answers) {
    nlohmann::ordered_json image{{"image", answer.image},
                                 {"predictions", nlohmann::ordered_json::array()},
                                 {runner.metadata().scores()->name, answer.scores}};
    for (const Prediction& found : answer.predictions) {
      image["predictions"].push_back({{"index", found.index},
                                      {"label", found.label},
                                      {"probability", found.probability}});
    }
    report["images"].push_back(std::move(image));
  }
  if (repeat > 0) {
    report["latency_ms"] = {{"n", durations.total.size()},
                            {"decode", figures(durations.decode)},
                            {"preprocess", figures(durations.preprocess)},
                            {"inference", figures(durations.inference)},
                            {"total", figures(durations.total)}};
  }
  // A file name need not be UTF-8: what is not is replaced.
  std::printf("%s\n",
              report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

void print_row(const char* stage, const std::vector<double>& samples) {
  std::printf("%-10s  %9.3f  %9.3f  %9.3f\n", stage, quantile(samples, 0.5),
              quantile(samples, 0.9), quantile(samples, 0.99));
}

void print_text(const Runner& runner, const std::vector<Answer>& answers,
                const Durations& durations, long repeat) {
  for (const Answer& answer : answers) {
    std::printf("%s\n", answer.image.c_str());
    for (const Prediction& found : answer.predictions) {
      std::printf("  %6.2f%%  %s\n", 100 * found.probability, found.label.c_str());
    }
  }
  if (repeat == 0) return;
  std::printf("\n%s, %zu runs (%zu images, each %ld times after one that is not counted), ms\n",
              runner.name().c_str(), durations.total.size(), answers.size(), repeat);
  std::printf("%-10s  %9s  %9s  %9s\n", "stage", "median", "p90", "p99");
  print_row("decode", durations.decode);
  print_row("preprocess", durations.preprocess);
  print_row("inference", durations.inference);
  print_row("total", durations.total);
}

}  // namespace

int main(int argc, char** argv) {
  apps::Arguments arguments(argc, argv);
  if (arguments.flag("--help") || arguments.flag("-h")) {
    std::printf("%s", kUsage);
    return 0;
  }
  const bool json = arguments.flag("--json");
  const int top = static_cast<int>(arguments.number("--top", 5, 1, 100'000));
  const long repeat = arguments.number("--repeat", 0, 1, 1'000'000);
  RunnerOptions options;
  options.threads = static_cast<int>(arguments.number("--threads", 0, 0, 1024));
  options.device = static_cast<int>(arguments.number("--device", 0, 0, 255));
  options.requests = 1;
  if (arguments.flag("--fixed")) options.fixed_batches = {1};
  options.selftest = !arguments.flag("--no-selftest");
  const std::vector<std::string>& words = arguments.rest();
  if (!arguments.error().empty() || words.size() < 2) {
    const std::string error = arguments.error();
    std::fprintf(stderr, "%serror: %s\n", kUsage,
                 error.empty() ? "an engine and at least one image are needed" : error.c_str());
    return apps::kUsageExit;
  }

  const Result<std::unique_ptr<Runner>> runner = open_runner(words[0], options);
  if (!runner) return apps::fail(runner.status());
  if (const Status status = check_classifies(runner.value()->metadata()); !status.ok()) {
    return apps::fail(status);
  }
  std::vector<Answer> answers;
  Durations durations, warm_up;
  for (std::size_t i = 1; i < words.size(); ++i) {
    Result<Answer> answer = run(*runner.value(), words[i], top, warm_up);
    if (!answer) return apps::fail(answer.status());
    answers.push_back(std::move(answer.value()));
    for (long turn = 0; turn < repeat; ++turn) {
      if (const auto again = run(*runner.value(), words[i], top, durations); !again) {
        return apps::fail(again.status());
      }
    }
  }
  (json ? print_json : print_text)(*runner.value(), answers, durations, repeat);
  return 0;
}
