// OpenVINO on CPUs; the same guards as rest_deploy/engine/openvino.py.
#include <algorithm>
#include <map>
#include <numeric>
#include <openvino/frontend/manager.hpp>
#include <openvino/openvino.hpp>

#include "backends.h"
#include "machine.h"
#include "openvino_requests.h"
#include "selftest.h"

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
    check_ports();
    if (input_shape_.is_dynamic()) first_run(*any_, kFirst);
    const auto threads =
        static_cast<std::size_t>(options.threads > 0 ? options.threads : cores());
    for (const Shape& shape : shapes_of(options, metadata_)) {
      if (fixed_.count(shape) != 0) continue;
      const std::size_t streams = streams_for(shape[0], threads);
      const auto fixed = model->clone();
      fixed->reshape(ov::PartialShape(dimensions({shape[0] / streams, 3, shape[2], shape[3]})));
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

  Result<Tensors> infer_all(const ImageBatch& images,
                            const std::vector<std::string>& names) const override {
    if (Status status = check_images(images, metadata_); !status.ok()) return status;
    const Shape shape{images.batch, 3, images.height, images.width};
    if (!input_shape_.compatible(dimensions(shape))) {
      return Status(Code::shape, path_ + " got " + text(dimensions(shape)) + "; expected " +
                                     input_shape_.to_string());
    }
    Result<Tensors> tensors = room_for(metadata_, names, images);
    if (!tensors) return tensors;
    const auto fixed = fixed_.find(shape);
    try {
      run(fixed == fixed_.end() ? *any_ : *fixed->second, images, tensors.value());
      poison(images, tensors.value());
      return tensors;
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& error) {
      return Status(Code::device, "OpenVINO failed to run " + path_ + ": " + why(error));
    }
  }

 private:
  static std::string text(const ov::Shape& shape) { return ov::PartialShape(shape).to_string(); }

  // Of the input, for images of (batch, 3, height, width).
  ov::Shape dimensions(const Shape& images) const {
    const Shape shape = input_shape(metadata_.input, images);
    return {shape.begin(), shape.end()};
  }

  // That the model has the input and the outputs which its sidecar names.
  void check_ports() {
    const ov::CompiledModel& model = any_->model();
    input_shape_ = model.input().get_partial_shape();
    input_type_ = model.input().get_element_type();
    const bool pixels = metadata_.input == InputKind::pixels;
    if (pixels ? input_type_ != ov::element::u8 : !is_float(input_type_)) {
      throw std::runtime_error("its input is " + input_type_.get_type_name() + "; expected " +
                               (pixels ? "u8" : "f32 or f16"));
    }
    if (model.outputs().size() != metadata_.outputs.size()) {
      throw std::runtime_error("it has " + std::to_string(model.outputs().size()) +
                               " outputs; its sidecar names " + metadata_.gives());
    }
    for (const Output& output : metadata_.outputs) {
      const ov::element::Type type = model.output(output.name).get_element_type();
      if (!is_float(type)) {
        throw std::runtime_error("its output " + output.name + " is " + type.get_type_name() +
                                 "; expected f32 or f16");
      }
    }
  }

  static bool is_float(const ov::element::Type& type) {
    return type == ov::element::f32 || type == ov::element::f16;
  }

  void first_run(Compiled& compiled, const Shape& shape) const {
    const std::size_t size = shape[0] * shape[1] * shape[2] * shape[3];
    Images zeros{{}, shape[0], shape[2], shape[3], {}};
    if (metadata_.input == InputKind::pixels) {
      zeros.pixels.resize(size);
    } else {
      zeros.data.resize(size);
    }
    Tensors none;
    run(compiled, zeros.view(), none);
  }

  // Fills the tensors, whose names and shapes are set.
  void run(Compiled& compiled, const ImageBatch& images, Tensors& tensors) const {
    Lease lease(compiled);
    Requests& requests = lease.requests();
    const std::size_t part = images.batch / requests.size();
    for (std::size_t i = 0; i < requests.size(); ++i) {
      requests[i].set_input_tensor(input(images, i * part, part));
    }
    run_all(requests);
    for (Tensor& tensor : tensors) {
      float* to = tensor.values.data();
      for (ov::InferRequest& request : requests) {
        to = copy(request.get_tensor(tensor.name), part, tensor, to);
      }
    }
  }

  ov::Tensor input(const ImageBatch& images, std::size_t first, std::size_t count) const {
    const ov::Shape shape = dimensions({count, 3, images.height, images.width});
    const std::size_t size = ov::shape_size(shape), from = first * (size / count);
    // Read where they are: OpenVINO's tensors have no const, its inputs are not written.
    if (input_type_ == ov::element::u8) {
      return ov::Tensor(input_type_, shape, const_cast<std::uint8_t*>(images.pixels + from));
    }
    if (input_type_ == ov::element::f32) {
      return ov::Tensor(input_type_, shape, const_cast<float*>(images.data + from));
    }
    ov::Tensor halves(input_type_, shape);
    std::transform(images.data + from, images.data + from + size, halves.data<ov::float16>(),
                   [](float value) { return ov::float16(value); });
    return halves;
  }

  // The answers for `batch` images; returns where those of the next ones go.
  float* copy(const ov::Tensor& found, std::size_t batch, const Tensor& tensor, float* to) const {
    ov::Shape expected(tensor.shape.begin(), tensor.shape.end());
    expected[0] = batch;
    if (found.get_shape() != expected) {
      throw std::runtime_error("it returned " + text(found.get_shape()) + " for " + tensor.name +
                               "; expected " + text(expected));
    }
    const std::size_t size = found.get_size();
    if (found.get_element_type() == ov::element::f32) {
      return std::copy_n(found.data<const float>(), size, to);
    }
    const auto* from = found.data<const ov::float16>();
    return std::transform(from, from + size, to,
                          [](ov::float16 value) { return static_cast<float>(value); });
  }

  Metadata metadata_;
  std::string path_;
  std::string name_ = "openvino/cpu";
  ov::PartialShape input_shape_;
  ov::element::Type input_type_;
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
    std::unique_ptr<Runner> runner(new OpenVinoRunner(path, sidecar, options, bf16));
    if (options.selftest) {
      const Site here =
          site_here(runner->name(), ov::get_openvino_version().buildNumber, options.threads);
      if (Status status = check_arrival(path, sidecar, *runner, here); !status.ok()) return status;
    }
    return runner;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    return Status(Code::artifact, "OpenVINO cannot load " + path + ": " + why(error));
  }
}

}  // namespace rest_deploy
