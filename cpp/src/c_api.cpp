#include "rest_deploy/c_api.h"

#include <algorithm>
#include <new>

#include "rest_deploy/classify.h"

struct rest_deploy_session {
  std::unique_ptr<rest_deploy::Runner> runner;
};

namespace {

using rest_deploy::Code;
using rest_deploy::Result;
using rest_deploy::Status;

thread_local std::string last_error;

rest_deploy_code code_of(Code code) {
  switch (code) {
    case Code::ok:
      return REST_DEPLOY_OK;
    case Code::argument:
      return REST_DEPLOY_ARGUMENT;
    case Code::artifact:
      return REST_DEPLOY_ARTIFACT;
    case Code::image:
    case Code::too_large:
      return REST_DEPLOY_IMAGE;
    case Code::shape:
      return REST_DEPLOY_SHAPE;
    case Code::missing:
      return REST_DEPLOY_MISSING;
    case Code::device:
    case Code::overloaded:
    case Code::deadline:
    case Code::unavailable:
      return REST_DEPLOY_DEVICE;
    case Code::selftest:
      return REST_DEPLOY_SELFTEST;
    case Code::internal:
      break;
  }
  return REST_DEPLOY_INTERNAL;
}

rest_deploy_kind kind_of(rest_deploy::OutputKind kind) {
  switch (kind) {
    case rest_deploy::OutputKind::logits:
      return REST_DEPLOY_LOGITS;
    case rest_deploy::OutputKind::probabilities:
      return REST_DEPLOY_PROBABILITIES;
    case rest_deploy::OutputKind::embedding:
      return REST_DEPLOY_EMBEDDING;
    case rest_deploy::OutputKind::features:
      break;
  }
  return REST_DEPLOY_FEATURES;
}

// Runs `call`, keeps its status for the thread, lets no exception out.
template <class Call>
rest_deploy_code guarded(Call call) noexcept {
  try {
    const Status status = call();
    if (!status.ok()) last_error = status.text();
    return code_of(status.code());
  } catch (const std::bad_alloc&) {
    last_error.clear();  // there may be no memory for a text
    return REST_DEPLOY_NO_MEMORY;
  } catch (...) {
    last_error.clear();
    return REST_DEPLOY_INTERNAL;
  }
}

Status room(std::size_t capacity, std::size_t needed) {
  if (capacity >= needed) return {};
  return {Code::argument, "there is room for " + std::to_string(capacity) + " floats; expected " +
                              std::to_string(needed)};
}

// What classes are read from; nullptr for a model without them, or no session.
const rest_deploy::Output* scores_of(const rest_deploy_session* session) {
  return session == nullptr ? nullptr : session->runner->metadata().scores();
}

Status decode(const rest_deploy_session* session, const uint8_t* bytes, std::size_t byte_count,
              rest_deploy::Image& pixels) {
  const Result<rest_deploy::Image> image = rest_deploy::decode_image(bytes, byte_count);
  if (!image) return image.status();
  Result<rest_deploy::Image> found =
      rest_deploy::to_pixels(image.value(), session->runner->metadata().preprocessing);
  if (!found) return found.status();
  pixels = std::move(found.value());
  return {};
}

Status null_argument() { return {Code::argument, "an argument is NULL"}; }

}  // namespace

extern "C" {

namespace {

rest_deploy_code open(const char* path, int threads, int requests, bool selftest,
                      rest_deploy_session** session) {
  return guarded([&]() -> Status {
    if (path == nullptr || session == nullptr) return null_argument();
    *session = nullptr;
    rest_deploy::RunnerOptions options;
    options.threads = threads;
    options.selftest = selftest;
    if (requests != 0) options.requests = requests;
    Result<std::unique_ptr<rest_deploy::Runner>> runner = rest_deploy::open_runner(path, options);
    if (!runner) return runner.status();
    *session = new rest_deploy_session{std::move(runner.value())};
    return {};
  });
}

}  // namespace

rest_deploy_code rest_deploy_open(const char* path, int threads, int requests,
                                  rest_deploy_session** session) {
  return open(path, threads, requests, true, session);
}

rest_deploy_code rest_deploy_open_untested(const char* path, int threads, int requests,
                                           rest_deploy_session** session) {
  return open(path, threads, requests, false, session);
}

void rest_deploy_close(rest_deploy_session* session) { delete session; }

const char* rest_deploy_backend(const rest_deploy_session* session) {
  return session == nullptr ? nullptr : session->runner->name().c_str();
}

size_t rest_deploy_num_classes(const rest_deploy_session* session) {
  return scores_of(session) == nullptr ? 0 : session->runner->metadata().labels.size();
}

const char* rest_deploy_label(const rest_deploy_session* session, size_t index) {
  if (index >= rest_deploy_num_classes(session)) return nullptr;
  return session->runner->metadata().labels[index].c_str();
}

int rest_deploy_input_size(const rest_deploy_session* session) {
  return session == nullptr ? 0 : session->runner->metadata().preprocessing.crop;
}

size_t rest_deploy_num_outputs(const rest_deploy_session* session) {
  return session == nullptr ? 0 : session->runner->metadata().outputs.size();
}

rest_deploy_code rest_deploy_describe(const rest_deploy_session* session, size_t index,
                                      rest_deploy_output* output) {
  return guarded([&]() -> Status {
    if (session == nullptr || output == nullptr) return null_argument();
    const auto& outputs = session->runner->metadata().outputs;
    if (index >= outputs.size()) {
      return {Code::argument, "there is no output " + std::to_string(index) + ": the model has " +
                                  std::to_string(outputs.size()) + ", counted from 0"};
    }
    const rest_deploy::Output& found = outputs[index];
    *output = {found.name.c_str(), kind_of(found.kind), found.channels, found.stride,
               found.unit_length ? 1 : 0};
    return {};
  });
}

size_t rest_deploy_output_size(const rest_deploy_session* session, size_t index, size_t batch,
                               size_t height, size_t width) {
  if (index >= rest_deploy_num_outputs(session)) return 0;
  const rest_deploy::Output& output = session->runner->metadata().outputs[index];
  const auto cells = [&](size_t side) {
    return output.stride == 0 ? 1 : side / output.stride + (side % output.stride != 0);
  };
  return batch * output.channels * cells(height) * cells(width);
}

int rest_deploy_takes_pixels(const rest_deploy_session* session) {
  return session != nullptr &&
         session->runner->metadata().input == rest_deploy::InputKind::pixels;
}

rest_deploy_code rest_deploy_preprocess(const rest_deploy_session* session, const uint8_t* bytes,
                                        size_t byte_count, float* tensor, size_t capacity) {
  return guarded([&]() -> Status {
    if (session == nullptr || bytes == nullptr || tensor == nullptr) return null_argument();
    const rest_deploy::Preprocessing& how = session->runner->metadata().preprocessing;
    const std::size_t side = static_cast<std::size_t>(how.crop);
    if (Status status = room(capacity, 3 * side * side); !status.ok()) return status;
    rest_deploy::Image pixels;
    if (Status status = decode(session, bytes, byte_count, pixels); !status.ok()) return status;
    rest_deploy::normalize(pixels, how, tensor);
    return {};
  });
}

rest_deploy_code rest_deploy_preprocess_pixels(const rest_deploy_session* session,
                                               const uint8_t* bytes, size_t byte_count,
                                               uint8_t* pixels, size_t capacity) {
  return guarded([&]() -> Status {
    if (session == nullptr || bytes == nullptr || pixels == nullptr) return null_argument();
    const auto side = static_cast<std::size_t>(rest_deploy_input_size(session));
    if (Status status = room(capacity, 3 * side * side); !status.ok()) return status;
    rest_deploy::Image found;
    if (Status status = decode(session, bytes, byte_count, found); !status.ok()) return status;
    std::copy(found.rgb.begin(), found.rgb.end(), pixels);
    return {};
  });
}

rest_deploy_code rest_deploy_infer(const rest_deploy_session* session, const float* images,
                                   size_t batch, size_t height, size_t width, float* logits,
                                   size_t capacity) {
  return guarded([&]() -> Status {
    if (session == nullptr || images == nullptr || logits == nullptr) return null_argument();
    const Result<rest_deploy::Logits> answer =
        session->runner->infer({images, batch, height, width});
    if (!answer) return answer.status();
    const std::vector<float>& values = answer.value().values;
    if (Status status = room(capacity, values.size()); !status.ok()) return status;
    std::copy(values.begin(), values.end(), logits);
    return {};
  });
}

rest_deploy_code rest_deploy_infer_all(const rest_deploy_session* session, const float* images,
                                       const uint8_t* pixels, size_t batch, size_t height,
                                       size_t width, float* const* outputs,
                                       const size_t* capacities) {
  return guarded([&]() -> Status {
    if (session == nullptr || outputs == nullptr || capacities == nullptr) return null_argument();
    const rest_deploy::ImageBatch given{images, batch, height, width, pixels};
    const rest_deploy::Metadata& metadata = session->runner->metadata();
    if (Status status = rest_deploy::check_images(given, metadata); !status.ok()) return status;
    std::vector<std::string> names;
    std::vector<float*> targets;
    for (std::size_t i = 0; i < metadata.outputs.size(); ++i) {
      if (outputs[i] == nullptr) continue;
      const std::size_t needed = rest_deploy_output_size(session, i, batch, height, width);
      if (Status status = room(capacities[i], needed); !status.ok()) return status;
      names.push_back(metadata.outputs[i].name);
      targets.push_back(outputs[i]);
    }
    if (names.empty()) return {Code::argument, "no output is wanted: all of them are NULL"};
    const Result<rest_deploy::Tensors> answer = session->runner->infer_all(given, names);
    if (!answer) return answer.status();
    for (std::size_t i = 0; i < targets.size(); ++i) {
      const std::vector<float>& values = answer.value()[i].values;
      std::copy(values.begin(), values.end(), targets[i]);
    }
    return {};
  });
}

rest_deploy_code rest_deploy_best(const rest_deploy_session* session, const float* logits,
                                  size_t* indices, double* probabilities, size_t* count) {
  return guarded([&]() -> Status {
    if (session == nullptr || logits == nullptr || indices == nullptr || probabilities == nullptr ||
        count == nullptr) {
      return null_argument();
    }
    const rest_deploy::Metadata& metadata = session->runner->metadata();
    const std::size_t wanted = std::min(*count, metadata.labels.size());
    if (Status status = rest_deploy::check_classifies(metadata); !status.ok()) return status;
    const auto found = rest_deploy::best(logits, metadata, static_cast<int>(wanted),
                                         metadata.scores()->kind);
    if (!found) return found.status();
    *count = found.value().size();
    for (std::size_t i = 0; i < *count; ++i) {
      indices[i] = static_cast<std::size_t>(found.value()[i].index);
      probabilities[i] = found.value()[i].probability;
    }
    return {};
  });
}

const char* rest_deploy_last_error(void) { return last_error.c_str(); }

const char* rest_deploy_version(void) { return REST_DEPLOY_VERSION; }

}  // extern "C"
