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
    case Code::internal:
      break;
  }
  return REST_DEPLOY_INTERNAL;
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

Status null_argument() { return {Code::argument, "an argument is NULL"}; }

}  // namespace

extern "C" {

rest_deploy_code rest_deploy_open(const char* path, int threads, int requests,
                                  rest_deploy_session** session) {
  return guarded([&]() -> Status {
    if (path == nullptr || session == nullptr) return null_argument();
    *session = nullptr;
    rest_deploy::RunnerOptions options;
    options.threads = threads;
    if (requests != 0) options.requests = requests;
    Result<std::unique_ptr<rest_deploy::Runner>> runner = rest_deploy::open_runner(path, options);
    if (!runner) return runner.status();
    *session = new rest_deploy_session{std::move(runner.value())};
    return {};
  });
}

void rest_deploy_close(rest_deploy_session* session) { delete session; }

const char* rest_deploy_backend(const rest_deploy_session* session) {
  return session == nullptr ? nullptr : session->runner->name().c_str();
}

size_t rest_deploy_num_classes(const rest_deploy_session* session) {
  return session == nullptr ? 0 : session->runner->metadata().labels.size();
}

const char* rest_deploy_label(const rest_deploy_session* session, size_t index) {
  if (index >= rest_deploy_num_classes(session)) return nullptr;
  return session->runner->metadata().labels[index].c_str();
}

int rest_deploy_input_size(const rest_deploy_session* session) {
  return session == nullptr ? 0 : session->runner->metadata().preprocessing.crop;
}

rest_deploy_code rest_deploy_preprocess(const rest_deploy_session* session, const uint8_t* bytes,
                                        size_t byte_count, float* tensor, size_t capacity) {
  return guarded([&]() -> Status {
    if (session == nullptr || bytes == nullptr || tensor == nullptr) return null_argument();
    const rest_deploy::Preprocessing& how = session->runner->metadata().preprocessing;
    const std::size_t side = static_cast<std::size_t>(how.crop);
    if (Status status = room(capacity, 3 * side * side); !status.ok()) return status;
    const Result<rest_deploy::Image> image = rest_deploy::decode_image(bytes, byte_count);
    if (!image) return image.status();
    const Result<rest_deploy::Image> pixels = rest_deploy::to_pixels(image.value(), how);
    if (!pixels) return pixels.status();
    rest_deploy::normalize(pixels.value(), how, tensor);
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

rest_deploy_code rest_deploy_best(const rest_deploy_session* session, const float* logits,
                                  size_t* indices, double* probabilities, size_t* count) {
  return guarded([&]() -> Status {
    if (session == nullptr || logits == nullptr || indices == nullptr || probabilities == nullptr ||
        count == nullptr) {
      return null_argument();
    }
    const rest_deploy::Metadata& metadata = session->runner->metadata();
    const std::size_t wanted = std::min(*count, metadata.labels.size());
    const auto found = rest_deploy::best(logits, metadata, static_cast<int>(wanted));
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
