#include "metrics.h"

#include <algorithm>
#include <cstdio>

namespace rest_deploy::serve {
namespace {

const std::vector<double> kSeconds{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                   0.1,   0.25,   0.5,   1,    2.5,   10};
const std::vector<double> kImages{1, 2, 4, 8, 16, 32, 64};

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

std::string head(const std::string& name, const std::string& kind, const std::string& help) {
  return "# HELP " + name + " " + help + "\n# TYPE " + name + " " + kind + "\n";
}

}  // namespace

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), counts_(bounds_.size(), 0) {}

void Histogram::add(double value) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (std::size_t i = 0; i < bounds_.size(); ++i) counts_[i] += value <= bounds_[i];
  sum_ += value;
  ++total_;
}

std::string Histogram::text(const std::string& name, const std::string& labels) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::string more = labels.empty() ? "" : labels + ",";
  const std::string alone = labels.empty() ? "" : "{" + labels + "}";
  std::string out;
  for (std::size_t i = 0; i < bounds_.size(); ++i) {
    out += name + "_bucket{" + more + "le=\"" + number(bounds_[i]) + "\"} " +
           std::to_string(counts_[i]) + "\n";
  }
  out += name + "_bucket{" + more + "le=\"+Inf\"} " + std::to_string(total_) + "\n";
  out += name + "_sum" + alone + " " + number(sum_) + "\n";
  out += name + "_count" + alone + " " + std::to_string(total_) + "\n";
  return out;
}

Metrics::Metrics()
    : infer_(kSeconds), classify_(kSeconds), queue_(kSeconds), inference_(kSeconds),
      batch_(kImages) {}

void Metrics::request(const std::string& route, int code, double seconds) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++requests_[{route, code}];
  }
  if (route == "infer") infer_.add(seconds);
  if (route == "classify") classify_.add(seconds);
}

void Metrics::batch(std::size_t images, double seconds) {
  images_ += images;
  batch_.add(static_cast<double>(images));
  inference_.add(seconds);
}

std::string Metrics::text(std::size_t queued) const {
  std::string out =
      head("rest_deploy_requests_total", "counter", "Requests answered, by route and status code.");
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [key, count] : requests_) {
      out += "rest_deploy_requests_total{route=\"" + key.first + "\",code=\"" +
             std::to_string(key.second) + "\"} " + std::to_string(count) + "\n";
    }
  }
  out += head("rest_deploy_images_total", "counter", "Images computed.");
  out += "rest_deploy_images_total " + std::to_string(images_.load()) + "\n";
  out += head("rest_deploy_queue_images", "gauge", "Images that wait for a batch.");
  out += "rest_deploy_queue_images " + std::to_string(queued) + "\n";
  out += head("rest_deploy_request_seconds", "histogram", "From the request to its answer.");
  out += infer_.text("rest_deploy_request_seconds", "route=\"infer\"");
  out += classify_.text("rest_deploy_request_seconds", "route=\"classify\"");
  out += head("rest_deploy_queue_seconds", "histogram", "From a request's entry to its batch.");
  out += queue_.text("rest_deploy_queue_seconds", "");
  out += head("rest_deploy_inference_seconds", "histogram", "One call of the engine.");
  out += inference_.text("rest_deploy_inference_seconds", "");
  out += head("rest_deploy_batch_images", "histogram", "Images in one call of the engine.");
  out += batch_.text("rest_deploy_batch_images", "");
  return out;
}

}  // namespace rest_deploy::serve
