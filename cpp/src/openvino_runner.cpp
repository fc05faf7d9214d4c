// OpenVINO on CPUs; the same guards as rest_deploy/engine/openvino.py.
#include <sched.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <numeric>
#include <openvino/frontend/manager.hpp>
#include <openvino/openvino.hpp>

#include "backends.h"

namespace rest_deploy {
namespace {

constexpr const char* kDevice = "CPU";

// A fused attention is compiled at its first run, and where that has one key (a 32x32 image), 16
// keys and more give wrong logits from then on (OpenVINO 2026.4.1). 64x64 has four keys in stage 1.
constexpr Shape kFirst{1, 3, 64, 64};

// One a process, as OpenVINO advises; thread-safe.
ov::Core& core() {
  static ov::Core instance;
  return instance;
}

// OpenVINO's message without the places in its source, on one line and not endless.
std::string why(const std::exception& error) {
  std::string text, line;
  for (const char* c = error.what();; ++c) {
    if (*c == '\n' || *c == '\0') {
      if (!line.empty() && line.rfind("Exception from", 0) != 0) text += (text.empty() ? "" : " ") + line;
      line.clear();
      if (*c == '\0') break;
    } else {
      line += *c;
    }
  }
  return text.substr(0, 300);
}

int cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

bool computes_bf16() {
  const auto able = core().get_property(kDevice, ov::device::capabilities);
  return std::find(able.begin(), able.end(), "BF16") != able.end();
}

// Read by the ONNX frontend alone: Core::read_model tries every other format on a damaged file.
std::shared_ptr<ov::Model> read_model(const std::string& path) {
  ov::frontend::FrontEndManager frontends;
  const auto frontend = frontends.load_by_framework("onnx");
  if (!frontend) throw std::runtime_error("OpenVINO's ONNX frontend is not here");
  auto model = frontend->convert(frontend->load(path));
  if (!model || model->inputs().empty()) throw std::runtime_error("there is no model in it");
  return model;
}

std::vector<Shape> shapes_of(const RunnerOptions& options, const Metadata& metadata) {
  std::vector<Shape> shapes = options.compiled_shapes;
  const std::size_t side = static_cast<std::size_t>(metadata.preprocessing.crop);
  for (const std::size_t batch : options.fixed_batches) shapes.push_back({batch, 3, side, side});
  return shapes;
}

// How many equal parts of a batch to run side by side: the most that share batch and threads evenly,
// as engine/openvino.py has it. No core waits for the others after every layer.
std::size_t streams_for(std::size_t batch, std::size_t threads) { return std::gcd(batch, threads); }

using Requests = std::vector<ov::InferRequest>;

// A compiled model and the requests that run it: one a stream, used by one call at a time.
class Compiled {
 public:
  Compiled(ov::CompiledModel model, int most, std::size_t streams = 1)
      : model_(std::move(model)), streams_(streams), left_(most) {}

  // All of a call together: calls that held some of theirs and waited for the rest would wait for
  // each other.
  Requests take() {
    std::unique_lock<std::mutex> lock(mutex_);
    free_.wait(lock, [this] { return left_ > 0; });
    --left_;
    if (idle_.empty()) {
      lock.unlock();
      try {
        Requests made;
        while (made.size() < streams_) made.push_back(model_.create_infer_request());
        return made;
      } catch (...) {
        lock.lock();
        ++left_;
        free_.notify_one();
        throw;
      }
    }
    Requests requests = std::move(idle_.back());
    idle_.pop_back();
    return requests;
  }

  void give(Requests requests) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      idle_.push_back(std::move(requests));
      ++left_;
    }
    free_.notify_one();
  }

  const ov::CompiledModel& model() const { return model_; }

 private:
  ov::CompiledModel model_;
  const std::size_t streams_;
  std::mutex mutex_;
  std::condition_variable free_;
  std::vector<Requests> idle_;
  int left_;
};

// The requests of a call, for the length of a scope.
class Lease {
 public:
  explicit Lease(Compiled& from) : from_(from), requests_(from.take()) {}
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() { from_.give(std::move(requests_)); }
  Requests& requests() { return requests_; }

 private:
  Compiled& from_;
  Requests requests_;
};

// No part is left running when another fails.
void run_all(Requests& requests) {
  if (requests.size() == 1) return requests[0].infer();
  std::exception_ptr failure;
  std::size_t started = 0;
  try {
    for (; started < requests.size(); ++started) requests[started].start_async();
  } catch (...) {
    failure = std::current_exception();
  }
  for (std::size_t i = 0; i < started; ++i) {
    try {
      requests[i].wait();
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

class OpenVinoRunner final : public Runner {
 public:
  OpenVinoRunner(const std::string& path, const Sidecar& sidecar, const RunnerOptions& options,
                 bool bf16)
      : metadata_(sidecar.metadata), path_(path) {
    ov::AnyMap config{
        // Always said: on CPUs with bf16 units OpenVINO silently computes in bf16.
        ov::hint::inference_precision(bf16 ? ov::element::bf16 : ov::element::f32),
        ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
        ov::num_streams(1),  // every stream has kernels of its own, and a first run of its own
    };
    if (options.threads > 0) config.insert(ov::inference_num_threads(options.threads));
    const std::shared_ptr<ov::Model> model = read_model(path);
    any_ = std::make_unique<Compiled>(core().compile_model(model, kDevice, config),
                                      options.requests);
    const auto input = any_->model().input(), output = any_->model().output();
    input_shape_ = input.get_partial_shape();
    input_type_ = input.get_element_type();
    output_type_ = output.get_element_type();
    for (const auto& type : {input_type_, output_type_}) {
      if (type != ov::element::f32 && type != ov::element::f16) {
        throw std::runtime_error("its tensors are " + type.get_type_name() +
                                 "; expected f32 or f16");
      }
    }
    if (input_shape_.is_dynamic()) first_run(*any_, kFirst);
    const std::size_t threads = static_cast<std::size_t>(options.threads > 0 ? options.threads : cores());
    for (const Shape& shape : shapes_of(options, metadata_)) {
      if (fixed_.count(shape) != 0) continue;
      const std::size_t streams = streams_for(shape[0], threads);
      const auto fixed = model->clone();
      fixed->reshape(ov::PartialShape(
          {static_cast<ov::Dimension::value_type>(shape[0] / streams), 3,
           static_cast<ov::Dimension::value_type>(shape[2]),
           static_cast<ov::Dimension::value_type>(shape[3])}));
      ov::AnyMap split = config;
      split[ov::num_streams.name()] = ov::streams::Num(static_cast<int>(streams));
      // Left alone, streams get fewer than all cores.
      if (streams > 1) split[ov::inference_num_threads.name()] = static_cast<int>(threads);
      auto compiled = std::make_unique<Compiled>(core().compile_model(fixed, kDevice, split),
                                                 options.requests, streams);
      first_run(*compiled, shape);
      fixed_[shape] = std::move(compiled);
    }
  }

  const std::string& name() const noexcept override { return name_; }
  const Metadata& metadata() const noexcept override { return metadata_; }

  Result<Logits> infer(const ImageBatch& images) const override {
    if (Status status = check_images(images); !status.ok()) return status;
    const Shape shape{images.batch, 3, images.height, images.width};
    const ov::Shape dimensions(shape.begin(), shape.end());
    if (!input_shape_.compatible(dimensions)) {
      return Status(Code::shape, path_ + " got " + text(dimensions) + "; expected " +
                                     input_shape_.to_string());
    }
    const auto fixed = fixed_.find(shape);
    try {
      Logits logits = run(fixed == fixed_.end() ? *any_ : *fixed->second, images, dimensions);
      poison(images, logits);
      return logits;
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& error) {
      return Status(Code::device, "OpenVINO failed to run " + path_ + ": " + why(error));
    }
  }

 private:
  static std::string text(const ov::Shape& shape) { return ov::PartialShape(shape).to_string(); }

  void first_run(Compiled& compiled, const Shape& shape) const {
    const ov::Shape dimensions(shape.begin(), shape.end());
    const std::vector<float> zeros(ov::shape_size(dimensions));
    run(compiled, {zeros.data(), shape[0], shape[2], shape[3]}, dimensions);
  }

  Logits run(Compiled& compiled, const ImageBatch& images, const ov::Shape& dimensions) const {
    Lease lease(compiled);
    Requests& requests = lease.requests();
    ov::Shape part = dimensions;
    part[0] /= requests.size();
    for (std::size_t i = 0; i < requests.size(); ++i) {
      requests[i].set_input_tensor(input(images.data + i * ov::shape_size(part), part));
    }
    run_all(requests);
    Logits logits{images.batch, 0, {}};
    for (ov::InferRequest& request : requests) append(request.get_output_tensor(), part[0], logits);
    return logits;
  }

  ov::Tensor input(const float* data, const ov::Shape& dimensions) const {
    if (input_type_ == ov::element::f32) {
      // Read where it is: OpenVINO's tensors have no const, its inputs are not written.
      return ov::Tensor(input_type_, dimensions, const_cast<float*>(data));
    }
    ov::Tensor halves(input_type_, dimensions);
    std::transform(data, data + ov::shape_size(dimensions), halves.data<ov::float16>(),
                   [](float value) { return ov::float16(value); });
    return halves;
  }

  void append(const ov::Tensor& output, std::size_t batch, Logits& logits) const {
    const ov::Shape shape = output.get_shape();
    if (shape.size() != 2 || shape[0] != batch ||
        (metadata_.num_classes > 0 &&
         shape[1] != static_cast<std::size_t>(metadata_.num_classes))) {
      throw std::runtime_error("it returned " + text(shape) + " for " + std::to_string(batch) +
                               " images");
    }
    logits.classes = shape[1];
    const std::size_t size = output.get_size();
    if (output_type_ == ov::element::f32) {
      const auto* from = output.data<const float>();
      logits.values.insert(logits.values.end(), from, from + size);
    } else {
      const auto* from = output.data<const ov::float16>();
      std::transform(from, from + size, std::back_inserter(logits.values),
                     [](ov::float16 value) { return static_cast<float>(value); });
    }
  }

  Metadata metadata_;
  std::string path_;
  std::string name_ = "openvino/cpu";
  ov::PartialShape input_shape_;
  ov::element::Type input_type_;
  ov::element::Type output_type_;
  std::unique_ptr<Compiled> any_;
  std::map<Shape, std::unique_ptr<Compiled>> fixed_;
};

Status check_options(const RunnerOptions& options, const Metadata& metadata) {
  if (options.threads > cores()) {
    return {Code::argument,
            std::to_string(options.threads) + " threads were asked for; there are " +
                std::to_string(cores()) + " cores here"};
  }
  const float something = 0;
  for (const Shape& shape : shapes_of(options, metadata)) {
    if (shape[1] != 3) return {Code::shape, "a compiled shape must have 3 channels"};
    if (Status status = check_images({&something, shape[0], shape[2], shape[3]}); !status.ok()) {
      return status;
    }
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Runner>> open_openvino(const std::string& path, const Sidecar& sidecar,
                                              const RunnerOptions& options) {
  if (Status status = check_options(options, sidecar.metadata); !status.ok()) return status;
  if (!sidecar.backend.empty() && sidecar.backend != "openvino") {
    return Status(Code::artifact,
                  path + " was built and checked for " + sidecar.backend + "; expected openvino",
                  "rest-deploy build-engine --backend openvino");
  }
  const bool bf16 =
      !sidecar.backend.empty() && (sidecar.precision == "bf16" || sidecar.rest == "bf16");
  try {
    if (bf16 && !computes_bf16()) {
      return Status(Code::missing,
                    path + " computes in bf16, and this CPU has no bf16 units: OpenVINO would "
                           "compute in float32 instead",
                    "rest-deploy build-engine --backend openvino without --bf16");
    }
    return std::unique_ptr<Runner>(new OpenVinoRunner(path, sidecar, options, bf16));
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    return Status(Code::artifact, "OpenVINO cannot load " + path + ": " + why(error));
  }
}

}  // namespace rest_deploy
