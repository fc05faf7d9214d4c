// What the server counts, as Prometheus reads it.
#ifndef REST_DEPLOY_APPS_SERVE_METRICS_H
#define REST_DEPLOY_APPS_SERVE_METRICS_H

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace rest_deploy::serve {

// Counts of values up to each bound, their sum and their number.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds);

  void add(double value);
  // Lines of the exposition format. labels: 'route="infer"', may be empty.
  std::string text(const std::string& name, const std::string& labels) const;

 private:
  mutable std::mutex mutex_;
  std::vector<double> bounds_;
  std::vector<std::uint64_t> counts_;
  double sum_ = 0;
  std::uint64_t total_ = 0;
};

class Metrics {
 public:
  Metrics();

  // A request was answered. route: "infer", "classify" or "other".
  void request(const std::string& route, int code, double seconds);
  // A batch of so many images was computed, in so many seconds.
  void batch(std::size_t images, double seconds);
  // A request waited so long for its batch.
  void waited(double seconds) { queue_.add(seconds); }

  // queued: images that wait now.
  std::string text(std::size_t queued) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, std::uint64_t> requests_;
  std::atomic<std::uint64_t> images_{0};
  Histogram infer_, classify_, queue_, inference_, batch_;
};

}  // namespace rest_deploy::serve

#endif
