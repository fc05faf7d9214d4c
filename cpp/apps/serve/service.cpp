#include "service.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "protocol.h"
#include "rest_deploy/classify.h"

namespace rest_deploy::serve {
namespace {

constexpr const char* kJson = "application/json";
constexpr int kConflict = 409;  // not with this model
constexpr const char* kBinary = "application/octet-stream";
constexpr const char* kInferLength = "Inference-Header-Content-Length";
// Of a model, with or without its version.
constexpr const char* kModel = R"(/v2/models/([^/]+)(?:/versions/([^/]+))?)";

void set_error(httplib::Response& response, const Status& status, int code = 0) {
  response.status = code != 0 ? code : http_status(status.code());
  if (response.status == 429 || response.status == 503) response.set_header("Retry-After", "1");
  response.set_content(error_body(status), kJson);
}

// For a request whose body was not read to its end: what is left of it must not be taken for the
// next request. A content provider that ends with `false` makes the server close the connection.
void close_with_error(httplib::Response& response, const Status& status, int code) {
  const std::string body = error_body(status);
  response.status = code;
  response.set_header("Connection", "close");
  response.set_content_provider(
      body.size(), kJson, [body](std::size_t, std::size_t, httplib::DataSink& sink) {
        sink.write(body.data(), body.size());
        return false;
      });
}

// A whole non-negative number of a header or parameter, nothing for something else.
std::optional<std::size_t> number(const std::string& text) {
  std::size_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string route_of(const httplib::Request& request) {
  const std::string& path = request.path;
  if (path == "/classify") return "classify";
  if (path == "/embed") return "embed";
  if (path.rfind("/v2/models/", 0) == 0 && path.size() > 6 &&
      path.compare(path.size() - 6, 6, "/infer") == 0) {
    return "infer";
  }
  return "other";
}

}  // namespace

int http_status(Code code) {
  switch (code) {
    case Code::ok:
      return 200;
    case Code::argument:
    case Code::image:
    case Code::shape:
      return 400;
    case Code::too_large:
      return 413;
    case Code::overloaded:
      return 429;
    case Code::deadline:
      return 504;
    case Code::unavailable:
      return 503;
    case Code::artifact:
    case Code::missing:
    case Code::device:
    case Code::selftest:
    case Code::internal:
      break;
  }
  return 500;
}

bool Gate::enter(Clock::time_point deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!free_.wait_until(lock, deadline, [this] { return left_ > 0; })) return false;
  --left_;
  return true;
}

void Gate::leave() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++left_;
  }
  free_.notify_one();
}

Service::Service(const Runner& runner, Batcher& batcher, Metrics& metrics, ServiceOptions options)
    : runner_(runner), batcher_(batcher), metrics_(metrics), options_([&] {
        if (options.model.empty()) options.model = runner.metadata().name;
        return options;
      }()),
      decoders_(options_.decoders) {}

void Service::attach(httplib::Server& server) {
  server.new_task_queue = [count = options_.connections] {
    return new httplib::ThreadPool(static_cast<std::size_t>(count));
  };
  server.set_socket_options([](int socket) {
    const int yes = 1;  // and not SO_REUSEPORT: two servers on one port are a mistake
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  });
  server.set_tcp_nodelay(true);  // header and body go in two writes
  server.set_payload_max_length(options_.max_body);
  server.set_keep_alive_max_count(1'000'000);
  server.set_pre_routing_handler(
      [this](const Request& request, Response& response) { return before(request, response); });
  server.set_exception_handler(
      [](const Request&, Response& response, std::exception_ptr) {
        close_with_error(response, Status(Code::internal, "the request failed"), 500);
      });
  server.set_error_handler([](const Request& request, Response& response) {
    // What the HTTP library refused by itself has no body yet.
    if (!response.body.empty() || response.content_length_ > 0) return;
    const std::string why = response.status == 404 ? "no such path: " + request.path
                            : response.status == 413 ? "the request's body is too large"
                                                     : "the request is not valid HTTP";
    response.set_content(error_body(Status(Code::argument, why)), kJson);
  });
  server.set_expect_100_continue_handler([this](const Request& request, Response&) {
    const auto length = number(request.get_header_value("Content-Length"));
    return length && *length > options_.max_body ? 413 : 100;
  });
  add_reading_routes(server);
  add_computing_routes(server);
}

// What must not reach a route, since its body would be left unread.
httplib::Server::HandlerResponse Service::before(const Request& request, Response& response) {
  const bool post = request.method == "POST";
  const bool reads = request.method == "GET" || request.method == "HEAD";
  const bool body = request.has_header("Transfer-Encoding") ||
                    number(request.get_header_value("Content-Length")).value_or(0) > 0;
  if (!post && !reads) {
    close_with_error(response, Status(Code::argument, "expected GET or POST"), 405);
  } else if (reads && body) {
    close_with_error(response, Status(Code::argument, "a GET request has no body"), 400);
  } else if (request.is_multipart_form_data()) {
    close_with_error(response, Status(Code::argument, "multipart forms are not taken",
                                      "send the bytes themselves as the body"),
                     415);
  } else {
    return httplib::Server::HandlerResponse::Unhandled;
  }
  metrics_.request("other", response.status, 0);
  return httplib::Server::HandlerResponse::Handled;
}

bool Service::read_body(const Request& request, Response& response,
                        const httplib::ContentReader& reader, std::string& body) {
  bool too_large = false;
  const bool whole = reader([&](const char* data, std::size_t size) {
    too_large = size > options_.max_body - body.size();
    if (!too_large) body.append(data, size);
    return !too_large;
  });
  if (whole) return true;
  const auto length = number(request.get_header_value("Content-Length"));
  if (too_large || (length && *length > options_.max_body)) {
    const Status status(Code::too_large, "the body is too large; expected at most " +
                                             std::to_string(options_.max_body) + " bytes");
    close_with_error(response, status, 413);
  } else {
    close_with_error(response, Status(Code::argument, "the body did not come as announced"), 400);
  }
  return false;
}

bool Service::knows(const std::string& model, const std::string& version) const {
  return model == options_.model && (version.empty() || version == kVersion);
}

Status Service::unknown(const std::string& model, const std::string& version) const {
  return {Code::argument, "no model " + model + (version.empty() ? "" : " of version " + version) +
                              "; there is " + options_.model + " of version " + kVersion};
}

void Service::add_reading_routes(httplib::Server& server) {
  server.Get("/v2/?", [](const Request&, Response& response) {
    response.set_content(server_metadata(), kJson);
  });
  server.Get("/v2/health/live", [](const Request&, Response&) {});
  const auto ready = [this](Response& response) {
    if (draining_) set_error(response, Status(Code::unavailable, "the server is shutting down"));
  };
  server.Get("/v2/health/ready", [ready](const Request&, Response& response) { ready(response); });
  server.Get(std::string(kModel) + "/ready", [this, ready](const Request& request, Response& response) {
    if (!knows(request.matches[1], request.matches[2])) {
      set_error(response, unknown(request.matches[1], request.matches[2]), 404);
    } else {
      ready(response);
    }
  });
  server.Get(kModel, [this](const Request& request, Response& response) {
    if (!knows(request.matches[1], request.matches[2])) {
      set_error(response, unknown(request.matches[1], request.matches[2]), 404);
    } else {
      response.set_content(model_metadata(runner_.metadata(), options_.model, runner_.name()), kJson);
    }
  });
  server.Get("/metrics", [this](const Request&, Response& response) {
    response.set_content(metrics_.text(batcher_.queued()), "text/plain; version=0.0.4");
  });
}

void Service::add_computing_routes(httplib::Server& server) {
  const auto counted = [this](auto handler) {
    return [this, handler](const Request& request, Response& response,
                           const httplib::ContentReader& reader) {
      const Clock::time_point start = Clock::now();
      std::string body;
      response.status = 200;
      if (batcher_.full() && route_of(request) != "other") {
        // Under overload most requests end here: their bodies are passed over, not kept or parsed.
        if (reader([](const char*, std::size_t) { return true; })) {
          set_error(response, Status(Code::overloaded, "the queue is full", "try again later"));
        } else {
          close_with_error(response, Status(Code::argument, "the body did not come as announced"),
                           400);
        }
      } else if (read_body(request, response, reader, body)) {
        handler(request, response, body);
      }
      metrics_.request(route_of(request), response.status,
                       std::chrono::duration<double>(Clock::now() - start).count());
    };
  };
  server.Post(std::string(kModel) + "/infer",
              counted([this](const Request& request, Response& response, const std::string& body) {
                infer(request, response, body);
              }));
  server.Post("/classify",
              counted([this](const Request& request, Response& response, const std::string& body) {
                classify(request, response, body);
              }));
  server.Post("/embed", counted([this](const Request&, Response& response, const std::string& body) {
                embed(response, body);
              }));
  // Anything else: read, so that the connection stays in step.
  server.Post(".*", counted([](const Request& request, Response& response, const std::string&) {
                set_error(response, Status(Code::argument, "no such path: " + request.path), 404);
              }));
}

void Service::infer(const Request& request, Response& response, const std::string& body) {
  if (!knows(request.matches[1], request.matches[2])) {
    return set_error(response, unknown(request.matches[1], request.matches[2]), 404);
  }
  const Clock::time_point start = Clock::now();
  std::optional<std::size_t> json_size;
  if (request.has_header(kInferLength)) {
    json_size = number(request.get_header_value(kInferLength));
    if (!json_size) {
      return set_error(response, Status(Code::argument, std::string(kInferLength) + " is no number"));
    }
  }
  Result<InferRequest> parsed = parse_request(body, json_size, runner_.metadata());
  if (!parsed) return set_error(response, parsed.status());
  InferRequest& wanted = parsed.value();
  Clock::time_point deadline = start + options_.deadline;
  if (wanted.timeout_us > 0) {
    deadline = std::min(deadline, start + std::chrono::microseconds(wanted.timeout_us));
  }
  const Result<Tensors> tensors =
      batcher_.run(std::move(wanted.images), wanted.names(), deadline);
  if (!tensors) return set_error(response, tensors.status());
  const Result<Body> answer =
      format_response(wanted, tensors.value(), runner_.metadata(), options_.model);
  if (!answer) return set_error(response, answer.status());
  if (answer.value().json_size) {
    response.set_header(kInferLength, std::to_string(*answer.value().json_size));
  }
  response.set_content(answer.value().content, answer.value().json_size ? kBinary : kJson);
}

Result<Images> Service::decoded(const std::string& body, Clock::time_point deadline) {
  if (batcher_.full()) return Status(Code::overloaded, "the queue is full", "try again later");
  if (!decoders_.enter(deadline)) {
    return Status(Code::deadline, "the image was not decoded before the deadline");
  }
  struct Leave {
    Gate& gate;
    ~Leave() { gate.leave(); }
  } leave{decoders_};
  const Result<Image> image = decode_image(reinterpret_cast<const std::uint8_t*>(body.data()),
                                           body.size(), options_.max_pixels);
  if (!image) return image.status();
  Images images;
  if (Status status = append(image.value(), runner_.metadata(), images); !status.ok()) return status;
  return images;
}

Result<Tensor> Service::answered(const std::string& body, const std::string& output) {
  const Clock::time_point deadline = Clock::now() + options_.deadline;
  if (draining_) return Status(Code::unavailable, "the server is shutting down");
  Result<Images> images = decoded(body, deadline);
  if (!images) return images.status();
  Result<Tensors> found = batcher_.run(std::move(images.value()), {output}, deadline);
  if (!found) return found.status();
  return std::move(found.value().front());
}

void Service::classify(const Request& request, Response& response, const std::string& body) {
  const Metadata& metadata = runner_.metadata();
  if (Status status = check_classifies(metadata); !status.ok()) {
    return set_error(response, status, kConflict);
  }
  const std::string top = request.has_param("top") ? request.get_param_value("top") : "5";
  const std::optional<std::size_t> count = number(top);
  if (!count || *count < 1 || *count > 100'000) {
    return set_error(response, Status(Code::argument, "top is " + top + "; expected 1 or more"));
  }
  const Output& output = *metadata.scores();
  const Result<Tensor> scores = answered(body, output.name);
  if (!scores) return set_error(response, scores.status());
  const auto found =
      best(scores.value().row(0), metadata, static_cast<int>(*count), output.kind);
  if (!found) return set_error(response, found.status());
  nlohmann::ordered_json answer{{"model", options_.model},
                                {"predictions", nlohmann::ordered_json::array()}};
  for (const Prediction& each : found.value()) {
    answer["predictions"].push_back({{"index", each.index},
                                     {"label", each.label},
                                     {"probability", each.probability}});
  }
  response.set_content(answer.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), kJson);
}

void Service::embed(Response& response, const std::string& body) {
  const Metadata& metadata = runner_.metadata();
  if (Status status = check_embeds(metadata); !status.ok()) {
    return set_error(response, status, kConflict);
  }
  const Result<Tensor> found = answered(body, metadata.find(OutputKind::embedding)->name);
  if (!found) return set_error(response, found.status());
  const std::vector<float>& values = found.value().values;
  if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) {
    return set_error(response, Status(Code::internal, "the model returned NaN or infinity"));
  }
  const nlohmann::ordered_json answer{{"model", options_.model}, {"embedding", values}};
  response.set_content(answer.dump(), kJson);
}

}  // namespace rest_deploy::serve
