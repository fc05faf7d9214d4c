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
#include "selftest.h"
#include "sha256.h"
#include "tensorrt_dims.h"

namespace rest_deploy {
namespace {

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

// An output: its memory on the GPU, and where it is copied to.
struct Place {
  CudaBuffer<DeviceMemory> device;
  CudaBuffer<PinnedMemory> host;
};

// What one call needs for itself: a stream orders its work.
struct Lane {
  explicit Lane(std::size_t count) : outputs(count) {}

  std::unique_ptr<nvinfer1::IExecutionContext> context;
  CudaStream stream;
  CudaEvent done;
  CudaBuffer<DeviceMemory> input;
  CudaBuffer<PinnedMemory> host_input;
  std::vector<Place> outputs;  // in the metadata's order
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

  Result<Tensors> infer_all(const ImageBatch& images,
                            const std::vector<std::string>& names) const override {
    if (Status status = check_images(images, metadata_); !status.ok()) return status;
    const Dims shape =
        dims_of(input_shape(metadata_.input, {images.batch, 3, images.height, images.width}));
    const int profile = profile_for(shape);
    if (profile < 0) {
      return Status(Code::shape,
                    path_ + " has no profile for " + text(shape) + "; it has " + profiles(),
                    "rest-deploy build-engine with --min-shapes and --max-shapes around what comes");
    }
    Result<Tensors> tensors = room_for(metadata_, names, images);
    if (!tensors) return tensors;
    try {
      REST_DEPLOY_CUDA(cudaSetDevice(device_));
      std::unique_ptr<Lane> lane = take();
      try {
        run(*lane, profile, shape, images, tensors.value());
      } catch (...) {
        give(nullptr);  // work may still be under way in its memory: it is not used again
        throw;
      }
      give(std::move(lane));
      poison(images, tensors.value());
      return tensors;
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& error) {
      return Status(Code::device, path_ + " failed on GPU " + std::to_string(device_) + ": " +
                                      error.what());
    }
  }

 private:
  void find_tensors() {
    const std::size_t count = static_cast<std::size_t>(engine_->getNbIOTensors());
    std::size_t outputs = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const char* tensor = engine_->getIOTensorName(static_cast<int>(i));
      if (engine_->getTensorIOMode(tensor) == nvinfer1::TensorIOMode::kINPUT) {
        input_ = tensor;
      } else {
        ++outputs;
      }
    }
    if (count != outputs + 1 || outputs != metadata_.outputs.size()) {
      throw std::runtime_error("the engine has " + std::to_string(outputs) + " outputs and " +
                               std::to_string(count - outputs) +
                               " inputs; its sidecar names one input and " + metadata_.gives());
    }
    input_type_ = engine_->getTensorDataType(input_.c_str());
    const bool pixels = metadata_.input == InputKind::pixels;
    if (pixels ? input_type_ != DataType::kUINT8 : !is_float(input_type_)) {
      throw std::runtime_error(std::string("the engine's input is not ") +
                               (pixels ? "uint8" : "float32 or float16"));
    }
    for (const Output& output : metadata_.outputs) {
      const char* name = output.name.c_str();
      if (engine_->getTensorIOMode(name) != nvinfer1::TensorIOMode::kOUTPUT) {
        throw std::runtime_error("the engine has no output " + output.name);
      }
      output_types_.push_back(engine_->getTensorDataType(name));
      if (!is_float(output_types_.back())) {
        throw std::runtime_error("the output " + output.name + " is neither float32 nor float16");
      }
    }
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
      auto lane = std::make_unique<Lane>(metadata_.outputs.size());
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

  // Fills the tensors, whose names and shapes are set. The engine writes its other outputs too, and
  // they stay where they are.
  void run(Lane& lane, int profile, const Dims& shape, const ImageBatch& images,
           Tensors& tensors) const {
    nvinfer1::IExecutionContext& context = *lane.context;
    const cudaStream_t stream = lane.stream.get();
    if (lane.profile != profile) {
      must(context.setOptimizationProfileAsync(profile, stream), "the profile");
      lane.profile = profile;
    }
    must(context.setInputShape(input_.c_str(), shape), "the input's shape");
    must(context.inferShapes(0, nullptr) == 0, "to infer the shapes");
    const std::size_t in_bytes = images.size() * element_bytes(input_type_);
    void* host_input = lane.host_input.reserve(in_bytes);
    void* input = lane.input.reserve(in_bytes);
    write_input(images, host_input);
    must(context.setTensorAddress(input_.c_str(), input), "the input's address");
    for (std::size_t i = 0; i < metadata_.outputs.size(); ++i) {
      const Output& output = metadata_.outputs[i];
      const auto expected = shape_of(output, images.batch, images.height, images.width);
      const Dims out = context.getTensorShape(output.name.c_str());
      if (!equal(out, expected)) {
        throw std::runtime_error("it returns " + text(out) + " for " + output.name +
                                 "; expected " + text_of(expected));
      }
      void* memory = lane.outputs[i].device.reserve(bytes(i, expected));
      must(context.setTensorAddress(output.name.c_str(), memory), "an output's address");
    }
    REST_DEPLOY_CUDA(cudaMemcpyAsync(input, host_input, in_bytes, cudaMemcpyHostToDevice, stream));
    must(context.enqueueV3(stream), "to run");
    for (const Tensor& tensor : tensors) {
      const std::size_t i = place(tensor), size = bytes(i, tensor.shape);
      Place& output = lane.outputs[i];
      REST_DEPLOY_CUDA(cudaMemcpyAsync(output.host.reserve(size), output.device.reserve(size), size,
                                       cudaMemcpyDeviceToHost, stream));
    }
    lane.done.record(lane.stream);
    lane.done.wait();
    for (Tensor& tensor : tensors) {
      const std::size_t i = place(tensor);
      read_output(lane.outputs[i].host.reserve(0), output_types_[i], tensor.values);
    }
  }

  // Of a tensor among the outputs.
  std::size_t place(const Tensor& tensor) const {
    return static_cast<std::size_t>(metadata_.find(tensor.name) - metadata_.outputs.data());
  }

  std::size_t bytes(std::size_t output, const std::vector<std::size_t>& shape) const {
    std::size_t size = element_bytes(output_types_[output]);
    for (const std::size_t length : shape) size *= length;
    return size;
  }

  void write_input(const ImageBatch& images, void* target) const {
    if (input_type_ == DataType::kUINT8) {
      std::memcpy(target, images.pixels, images.size());
    } else if (input_type_ == DataType::kFLOAT) {
      std::memcpy(target, images.data, images.size() * sizeof(float));
    } else {
      std::transform(images.data, images.data + images.size(),
                     static_cast<std::uint16_t*>(target), to_half);
    }
  }

  static void read_output(const void* source, DataType type, std::vector<float>& values) {
    if (type == DataType::kFLOAT) {
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
  std::string input_;
  DataType input_type_ = DataType::kFLOAT;
  std::vector<DataType> output_types_;  // in the metadata's order
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
    std::unique_ptr<Runner> runner(new TensorRtRunner(path, sidecar, options, engine.value()));
    if (options.selftest) {
      const Here& found = here.value();
      const Site site = site_here(found.flavour + "/cuda", found.version, 0, found.sm,
                                  std::to_string(found.cuda_major) + "." +
                                      std::to_string(found.cuda_minor));
      if (Status status = check_arrival(path, sidecar, *runner, site); !status.ok()) return status;
    }
    return runner;
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
