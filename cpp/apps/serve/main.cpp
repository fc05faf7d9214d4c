// serve ENGINE: one model over HTTP, until SIGTERM or SIGINT.
#include <atomic>
#include <csignal>
#include <cstdio>
#include <pthread.h>
#include <thread>

#include "../arguments.h"
#include "service.h"

using namespace rest_deploy;

namespace {

constexpr const char* kUsage =
    "usage: serve ENGINE [options]\n"
    "  ENGINE               FILE.onnx or FILE.engine of rest-deploy, its sidecar beside it\n"
    "  --host ADDRESS       to listen on (127.0.0.1: this machine only)\n"
    "  --port N             0: any free one (8000)\n"
    "  --name NAME          of the model in URLs (its card's)\n"
    "  --max-batch N        images of one call of the engine (8)\n"
    "  --max-delay-ms N     that the first image of a batch waits for others (2)\n"
    "  --queue N            images that may wait; more get 429 (128)\n"
    "  --deadline-ms N      of a request; later it gets 504 (10000)\n"
    "  --max-body-mb N      of a request; larger ones get 413 (32)\n"
    "  --max-megapixels N   of an image for /classify and /embed (25)\n"
    "  --connections N      served at a time, each holds a thread (64)\n"
    "  --instances N        calls of the engine at a time (1)\n"
    "  --threads N          of one call of the engine; 0: all cores (0)\n"
    "  --fixed              compile for full batches and for single images of the card's size too\n"
    "  --device N           number of the GPU, for an .engine (0)\n"
    "  --no-selftest        do not ask whether the engine answers here as where it was built\n"
    "exit codes: 0 done, 1 self-test failed, 2 wrong command line, 3 bad model,\n"
    "            4 something is missing here, 5 the address cannot be listened on\n";

constexpr int kOutputExit = 5;

struct Settings {
  std::string engine, host;
  int port = 0;
  RunnerOptions runner;
  serve::BatcherOptions batcher;
  serve::ServiceOptions service;
};

std::string read_settings(apps::Arguments& arguments, Settings& settings) {
  const auto number = [&](const char* name, long otherwise, long least, long most) {
    return arguments.number(name, otherwise, least, most);
  };
  settings.host = arguments.text("--host", "127.0.0.1");
  settings.port = static_cast<int>(number("--port", 8000, 0, 65535));
  settings.service.model = arguments.text("--name", "");
  settings.batcher.max_batch = static_cast<std::size_t>(number("--max-batch", 8, 1, 1024));
  settings.batcher.max_delay = std::chrono::milliseconds(number("--max-delay-ms", 2, 0, 10'000));
  settings.batcher.queue = static_cast<std::size_t>(number("--queue", 128, 1, 100'000));
  settings.service.deadline =
      std::chrono::milliseconds(number("--deadline-ms", 10'000, 1, 3'600'000));
  settings.service.max_body = static_cast<std::size_t>(number("--max-body-mb", 32, 1, 4096)) << 20;
  settings.service.max_pixels = number("--max-megapixels", 25, 1, 89) * 1'000'000;
  settings.service.connections = static_cast<int>(number("--connections", 64, 1, 512));
  settings.batcher.instances = static_cast<int>(number("--instances", 1, 1, 64));
  settings.runner.requests = settings.batcher.instances;
  settings.runner.threads = static_cast<int>(number("--threads", 0, 0, 1024));
  settings.runner.device = static_cast<int>(number("--device", 0, 0, 255));
  settings.runner.selftest = !arguments.flag("--no-selftest");
  settings.runner.fixed_batches =
      arguments.flag("--fixed") ? std::vector<std::size_t>{1, settings.batcher.max_batch}
                                : std::vector<std::size_t>{};
  if (settings.batcher.queue < settings.batcher.max_batch) {
    return "--queue is below --max-batch: no full batch would ever wait";
  }
  if (!arguments.error().empty()) return arguments.error();
  if (arguments.rest().size() != 1) return "one engine is needed";
  settings.engine = arguments.rest()[0];
  return {};
}

int serve_until_signal(const Settings& settings, const Runner& runner, const sigset_t& signals) {
  serve::Metrics metrics;
  serve::Batcher batcher(runner, settings.batcher, metrics);
  serve::Service service(runner, batcher, metrics, settings.service);
  httplib::Server server;
  service.attach(server);
  const int port = settings.port != 0
                       ? (server.bind_to_port(settings.host, settings.port) ? settings.port : -1)
                       : server.bind_to_any_port(settings.host);
  if (port < 0) {
    std::fprintf(stderr, "error: cannot listen on %s:%d\n", settings.host.c_str(), settings.port);
    return kOutputExit;
  }
  std::atomic<bool> ended{false};
  std::thread waiter([&] {
    int number = 0;
    sigwait(&signals, &number);
    while (!server.is_running()) {  // the signal may come before the server listens
      if (ended) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::fprintf(stderr, "signal %d: no new requests, those under way are answered\n", number);
    service.drain();
    server.stop();
  });
  std::printf("serving %s (%s) on http://%s:%d\n", settings.engine.c_str(), runner.name().c_str(),
              settings.host.c_str(), port);
  std::fflush(stdout);
  const bool stopped = server.listen_after_bind();  // returns when the last connection is served
  ended = true;
  if (!stopped) pthread_kill(waiter.native_handle(), SIGTERM);
  waiter.join();
  return stopped ? 0 : kOutputExit;
}

}  // namespace

int main(int argc, char** argv) {
  apps::Arguments arguments(argc, argv);
  if (arguments.flag("--help") || arguments.flag("-h")) {
    std::printf("%s", kUsage);
    return 0;
  }
  Settings settings;
  if (const std::string error = read_settings(arguments, settings); !error.empty()) {
    std::fprintf(stderr, "%serror: %s\n", kUsage, error.c_str());
    return apps::kUsageExit;
  }
  // Before any thread is there, so that all of them inherit it: one thread waits for the signals.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // a client that went away is an error of its write

  const Result<std::unique_ptr<Runner>> runner = open_runner(settings.engine, settings.runner);
  if (!runner) return apps::fail(runner.status());
  return serve_until_signal(settings, *runner.value(), signals);
}
