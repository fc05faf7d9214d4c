// The HTTP routes: Open Inference Protocol v2, /classify, /embed and /metrics.
#ifndef REST_DEPLOY_APPS_SERVE_SERVICE_H
#define REST_DEPLOY_APPS_SERVE_SERVICE_H

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>

#include <httplib.h>

#include "batcher.h"
#include "metrics.h"
#include "rest_deploy/runner.h"

namespace rest_deploy::serve {

struct ServiceOptions {
  std::string model;                          // its name in URLs; "": that of its card
  std::size_t max_body = 32U << 20;           // bytes of a request, also after decompression
  std::int64_t max_pixels = 25'000'000;       // of an image for /classify
  std::chrono::milliseconds deadline{10'000};  // of a request; a request may ask for less
  int connections = 64;                       // served at a time; each holds a thread
  int decoders = 2;                           // images decoded at a time
};

// At most so many threads at a time are past `enter`.
class Gate {
 public:
  explicit Gate(int most) : left_(most) {}
  // False when there was no room before the deadline.
  bool enter(Clock::time_point deadline);
  void leave();

 private:
  std::mutex mutex_;
  std::condition_variable free_;
  int left_;
};

class Service {
 public:
  // All of them outlive it.
  Service(const Runner& runner, Batcher& batcher, Metrics& metrics, ServiceOptions options);

  // The routes of `server`, and its limits.
  void attach(httplib::Server& server);

  // No longer ready: new inferences get 503, those under way go on.
  void drain() { draining_ = true; }

 private:
  using Request = httplib::Request;
  using Response = httplib::Response;

  void add_reading_routes(httplib::Server& server);
  void add_computing_routes(httplib::Server& server);
  httplib::Server::HandlerResponse before(const Request& request, Response& response);
  // False when an answer is set already: the body is too large or did not come.
  bool read_body(const Request& request, Response& response, const httplib::ContentReader& reader,
                 std::string& body);
  bool knows(const std::string& model, const std::string& version) const;
  Status unknown(const std::string& model, const std::string& version) const;
  void infer(const Request& request, Response& response, const std::string& body);
  void classify(const Request& request, Response& response, const std::string& body);
  void embed(Response& response, const std::string& body);
  // One output for the encoded image of a body.
  Result<Tensor> answered(const std::string& body, const std::string& output);
  Result<Images> decoded(const std::string& body, Clock::time_point deadline);

  const Runner& runner_;
  Batcher& batcher_;
  Metrics& metrics_;
  const ServiceOptions options_;
  Gate decoders_;
  std::atomic<bool> draining_{false};
};

// HTTP status of a code; 200 for ok.
int http_status(Code code);

}  // namespace rest_deploy::serve

#endif
