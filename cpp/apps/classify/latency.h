// What a number of durations say.
#ifndef REST_DEPLOY_APPS_CLASSIFY_LATENCY_H
#define REST_DEPLOY_APPS_CLASSIFY_LATENCY_H

#include <algorithm>
#include <cmath>
#include <vector>

namespace rest_deploy::apps {

// The value below which a share of the samples lies, linear between two of them (NumPy's default).
// NaN for no samples.
inline double quantile(std::vector<double> samples, double share) {
  if (samples.empty()) return std::nan("");
  std::sort(samples.begin(), samples.end());
  const double place = share * static_cast<double>(samples.size() - 1);
  const std::size_t below = static_cast<std::size_t>(place);
  const std::size_t above = std::min(below + 1, samples.size() - 1);
  return samples[below] + (place - static_cast<double>(below)) * (samples[above] - samples[below]);
}

}  // namespace rest_deploy::apps

#endif
