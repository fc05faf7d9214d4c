// TensorRT and TensorRT-RTX, which share this interface. The flavour is that of the SDK this was
// compiled with.
#include <NvInferRuntime.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "backends.h"
#include "cuda_memory.h"
#include "engine_fit.h"
#include "half.h"
#include "sha256.h"

namespace rest_deploy {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

// Keeps what TensorRT says is wrong; it may log from several threads.
class Log final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    try {
      const std::lock_guard<std::mutex> lock(mutex_);
      last_ = message;
    } catch (...) {  // no memory for the text: the call's own failure is reported
    }
  }

  std::string last() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return last_.empty() ? "no reason given" : last_.substr(0, 300);
  }

 private:
  mutable std::mutex mutex_;
  std::string last_;
};

struct Refused : std::runtime_error {
  Refused(const std::string& what, const Log& log)
      : std::runtime_error("TensorRT refused " + what + ": " + log.last()) {}
};

std::size_t element_bytes(DataType type) {
  if (type == DataType::kFLOAT) return 4;
  if (type == DataType::kHALF) return 2;
  throw std::runtime_error("a tensor of the engine is neither float32 nor float16");
}

Dims dims_of(const Shape& shape) {
  Dims dims{};
  dims.nbDims = static_cast<int>(shape.size());
  for (std::size_t i = 0; i < shape.size(); ++i) {
    dims.d[i] = static_cast<std::remove_reference_t<decltype(dims.d[0])>>(shape[i]);
  }
  return dims;
}

std::string text(const Dims& dims) {
  std::string out;
  for (int i = 0; i < dims.nbDims; ++i) out += (i == 0 ? "" : "x") + std::to_string(dims.d[i]);
  return out;
}

bool within(const Dims& low, const Dims& shape, const Dims& high) {
  for (int i = 0; i < shape.nbDims; ++i) {
    if (shape.d[i] < low.d[i] || shape.d[i] > high.d[i]) return false;
  }
  return low.nbDims == shape.nbDims && high.nbDims == shape.nbDims;
}

double volume(const Dims& dims) {
  double product = 1;
  for (int i = 0; i < dims.nbDims; ++i) product *= static_cast<double>(dims.d[i]);
  return product;
}

// What one call needs for itself: a stream orders its work.
struct Lane {
  std::unique_ptr<nvinfer1::IExecutionContext> context;
  CudaStream stream;
  CudaEvent done;
  CudaBuffer<DeviceMemory> input, output;
  CudaBuffer<PinnedMemory> host_input, host_output;
  int profile = -1;
};

class TensorRtRunner final : public Runner {
 public:
  TensorRtRunner(const std::string& path, const Sidecar& sidecar, const RunnerOptions& options,
                 const std::string& engine)
      : metadata_(sidecar.metadata), path_(path), name_(sidecar.fit->flavour + "/cuda"),
        device_(options.device), left_(options.requests) {
    REST_DEPLOY_CUDA(cudaSetDevice(device_));
    runtime_.reset(nvinfer1::createInferRuntime(log_));
    if (!runtime_) throw Refused("to start", log_);
    if (sidecar.fit->options.count("version-compatible") != 0) {
      runtime_->setEngineHostCodeAllowed(true);
    }
    engine_.reset(runtime_->deserializeCudaEngine(engine.data(), engine.size()));
    if (!engine_) throw Refused("the engine", log_);
    find_tensors();
  }

  ~TensorRtRunner() override {
    cudaSetDevice(device_);  // what is freed now belongs to it
    idle_.clear();
    engine_.reset();
    runtime_.reset();
  }

  const std::string& name() const noexcept override { return name_; }
  const Metadata& metadata() const noexcept override { return metadata_; }

  Result<Logits> infer(const ImageBatch& images) const override {
    if (Status status = check_images(images); !status.ok()) return status;
    const Dims shape = dims_of({images.batch, 3, images.height, images.width});
    const int profile = profile_for(shape);
    if (profile < 0) {
      return Status(Code::shape,
                    path_ + " has no profile for " + text(shape) + "; it has " + profiles(),
                    "rest-deploy build-engine with --min-shapes and --max-shapes around what comes");
    }
    try {
      REST_DEPLOY_CUDA(cudaSetDevice(device_));
      std::unique_ptr<Lane> lane = take();
      Logits logits;
      try {
        logits = run(*lane, profile, shape, images);
      } catch (...) {
        give(nullptr);  // work may still be under way in its memory: it is not used again
        throw;
      }
      give(std::move(lane));
      poison(images, logits);
      return logits;
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& error) {
      return Status(Code::device, path_ + " failed on GPU " + std::to_string(device_) + ": " +
                                      error.what());
    }
  }

 private:
  void find_tensors() {
    for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
      const std::string tensor = engine_->getIOTensorName(i);
      const bool in = engine_->getTensorIOMode(tensor.c_str()) == nvinfer1::TensorIOMode::kINPUT;
      (in ? input_ : output_) = tensor;
    }
    if (engine_->getNbIOTensors() != 2 || input_.empty() || output_.empty()) {
      throw std::runtime_error("the engine has other tensors than one input and one output");
    }
    input_type_ = engine_->getTensorDataType(input_.c_str());
    output_type_ = engine_->getTensorDataType(output_.c_str());
    element_bytes(input_type_);
    element_bytes(output_type_);
  }

  Dims limit(int profile, nvinfer1::OptProfileSelector which) const {
    return engine_->getProfileShape(input_.c_str(), profile, which);
  }

  // The smallest profile that holds the shape, -1 when none does.
  int profile_for(const Dims& shape) const {
    int found = -1;
    double least = 0;
    for (int i = 0; i < engine_->getNbOptimizationProfiles(); ++i) {
      const Dims high = limit(i, nvinfer1::OptProfileSelector::kMAX);
      if (!within(limit(i, nvinfer1::OptProfileSelector::kMIN), shape, high)) continue;
      if (found < 0 || volume(high) < least) {
        found = i;
        least = volume(high);
      }
    }
    return found;
  }

  std::string profiles() const {
    std::string all;
    for (int i = 0; i < engine_->getNbOptimizationProfiles(); ++i) {
      all += (i == 0 ? "" : ", ") + text(limit(i, nvinfer1::OptProfileSelector::kMIN)) + " to " +
             text(limit(i, nvinfer1::OptProfileSelector::kMAX));
    }
    return all;
  }

  std::unique_ptr<Lane> take() const {
    std::unique_lock<std::mutex> lock(mutex_);
    free_.wait(lock, [this] { return left_ > 0; });
    --left_;
    if (!idle_.empty()) {
      std::unique_ptr<Lane> lane = std::move(idle_.back());
      idle_.pop_back();
      return lane;
    }
    try {
      auto lane = std::make_unique<Lane>();
      lane->context.reset(engine_->createExecutionContext());
      if (!lane->context) throw Refused("an execution context", log_);
      return lane;
    } catch (...) {
      ++left_;
      free_.notify_one();
      throw;
    }
  }

  void give(std::unique_ptr<Lane> lane) const {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (lane) idle_.push_back(std::move(lane));
      ++left_;
    }
    free_.notify_one();
  }

  void must(bool done, const char* what) const {
    if (!done) throw Refused(what, log_);
  }

  Logits run(Lane& lane, int profile, const Dims& shape, const ImageBatch& images) const {
    nvinfer1::IExecutionContext& context = *lane.context;
    const cudaStream_t stream = lane.stream.get();
    if (lane.profile != profile) {
      must(context.setOptimizationProfileAsync(profile, stream), "the profile");
      lane.profile = profile;
    }
    must(context.setInputShape(input_.c_str(), shape), "the input's shape");
    must(context.inferShapes(0, nullptr) == 0, "to infer the shapes");
    const Dims out = context.getTensorShape(output_.c_str());
    if (out.nbDims != 2 || static_cast<std::size_t>(out.d[0]) != images.batch || out.d[1] < 1) {
      throw std::runtime_error("it returns " + text(out));
    }
    Logits logits{images.batch, static_cast<std::size_t>(out.d[1]), {}};
    logits.values.resize(logits.batch * logits.classes);
    const std::size_t in_bytes = images.size() * element_bytes(input_type_);
    const std::size_t out_bytes = logits.values.size() * element_bytes(output_type_);
    void* host_input = lane.host_input.reserve(in_bytes);
    void* host_output = lane.host_output.reserve(out_bytes);
    void* input = lane.input.reserve(in_bytes);
    void* output = lane.output.reserve(out_bytes);
    write_input(images, host_input);
    must(context.setTensorAddress(input_.c_str(), input), "the input's address");
    must(context.setTensorAddress(output_.c_str(), output), "the output's address");
    REST_DEPLOY_CUDA(cudaMemcpyAsync(input, host_input, in_bytes, cudaMemcpyHostToDevice, stream));
    must(context.enqueueV3(stream), "to run");
    REST_DEPLOY_CUDA(
        cudaMemcpyAsync(host_output, output, out_bytes, cudaMemcpyDeviceToHost, stream));
    lane.done.record(lane.stream);
    lane.done.wait();
    read_output(host_output, logits.values);
    return logits;
  }

  void write_input(const ImageBatch& images, void* target) const {
    if (input_type_ == DataType::kFLOAT) {
      std::memcpy(target, images.data, images.size() * sizeof(float));
    } else {
      std::transform(images.data, images.data + images.size(),
                     static_cast<std::uint16_t*>(target), to_half);
    }
  }

  void read_output(const void* source, std::vector<float>& values) const {
    if (output_type_ == DataType::kFLOAT) {
      std::memcpy(values.data(), source, values.size() * sizeof(float));
    } else {
      const auto* halves = static_cast<const std::uint16_t*>(source);
      std::transform(halves, halves + values.size(), values.begin(), from_half);
    }
  }

  Metadata metadata_;
  std::string path_;
  std::string name_;
  int device_;
  Log log_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::string input_, output_;
  DataType input_type_ = DataType::kFLOAT;
  DataType output_type_ = DataType::kFLOAT;
  mutable std::mutex mutex_;
  mutable std::condition_variable free_;
  mutable std::vector<std::unique_ptr<Lane>> idle_;
  mutable int left_;
};

std::string library_version() {
  return std::to_string(getInferLibMajorVersion()) + "." +
         std::to_string(getInferLibMinorVersion()) + "." +
         std::to_string(getInferLibPatchVersion()) + "." +
         std::to_string(getInferLibBuildVersion());
}

// Before TensorRT is touched: on a machine without a GPU its runtime may be a pointer to nothing.
Result<Here> examine(int device) {
  Here here{REST_DEPLOY_WITH_TENSORRT, library_version(), "", 0, 0};
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return here;
  if (device >= count) {
    return Status(Code::missing, "there is no GPU " + std::to_string(device) + ": " +
                                     std::to_string(count) + " of them, counted from 0");
  }
  int major = 0, minor = 0, driver = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess ||
      cudaDriverGetVersion(&driver) != cudaSuccess) {
    return Status(Code::device, "the GPU " + std::to_string(device) + " does not answer");
  }
  here.sm = std::to_string(major) + std::to_string(minor);
  here.cuda_major = driver / 1000;
  here.cuda_minor = driver % 1000 / 10;
  return here;
}

// Virtual tables are laid out by version: a library of another one would call the wrong functions.
Status check_library() {
  if (getInferLibMajorVersion() == NV_TENSORRT_MAJOR &&
      getInferLibMinorVersion() == NV_TENSORRT_MINOR) {
    return {};
  }
  return {Code::missing,
          std::string("this library was compiled for ") + REST_DEPLOY_WITH_TENSORRT + " " +
              std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) +
              ", loaded was " + library_version(),
          "compile it with the headers of the library that is installed"};
}

}  // namespace

Result<std::unique_ptr<Runner>> open_tensorrt(const std::string& path, const Sidecar& sidecar,
                                              const RunnerOptions& options) {
  if (Status status = check_library(); !status.ok()) return status;
  const Result<Here> here = examine(options.device);
  if (!here) return here.status();
  if (Status status = check_fit(path, sidecar, here.value()); !status.ok()) return status;
  // The very bytes that are hashed are those that are handed on.
  const Result<std::string> engine = read_text(path);
  if (!engine) return engine.status();
  if (sha256(engine.value()) != sidecar.sha256) {
    return Status(Code::artifact, path + " was replaced while it was read", sidecar.command);
  }
  try {
    return std::unique_ptr<Runner>(new TensorRtRunner(path, sidecar, options, engine.value()));
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const CudaError& error) {
    return Status(Code::device, path + " failed on GPU " + std::to_string(options.device) + ": " +
                                    error.what());
  } catch (const std::exception& error) {
    return Status(Code::artifact, path + " cannot be loaded: " + error.what(), sidecar.command);
  }
}

}  // namespace rest_deploy
