// `sensorium bench`: the scheduler without a device.
#include "server/cli_bench.h"

#include <fstream>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status_macros.h"
#include "server/cli_bench_config.h"
#include "server/cli_bench_report.h"
#include "server/cli_engine.h"
#include "server/progress_bar.h"

namespace sensorium {

namespace {

struct ReplayOptions {
  std::string trace;
  bool json = false;
};

absl::Status RunReplay(const ReplayOptions& o, int& exit_code) {
  ASSIGN_OR_RETURN(const std::unique_ptr<TraceReader> reader, TraceReader::Open(o.trace));
  ProgressBar bar;
  ASSIGN_OR_RETURN(const ReplayReport report, Replay(*reader, [&](int64_t done, int64_t total) {
                     bar.Update("replaying", static_cast<double>(done), static_cast<double>(total));
                   }));
  bar.Clear();
  if (!WriteOut(o.json ? ReplayJson(report) + "\n" : ReplayText(report))) {
    return absl::InternalError("cannot write the report to stdout");
  }
  if (report.mismatches > 0) exit_code = 1;
  return absl::OkStatus();
}

struct SimulateOptions {
  BenchFlags flags;
  std::string html, trace;
  bool json = false;
};

absl::Status RunSimulate(const SimulateOptions& o) {
  ASSIGN_OR_RETURN(BenchSetup setup, MakeBenchSetup(o.flags));
  std::unique_ptr<TraceWriter> writer;
  if (!o.trace.empty()) {
    ASSIGN_OR_RETURN(writer,
                     TraceWriter::Open(o.trace, {.options = SimulatedSchedulerOptions(
                                                     setup.workload, setup.profile, setup.options),
                                                 .num_blocks = setup.profile.kv_blocks}));
    setup.options.listener = writer.get();
  }
  ProgressBar bar;
  ASSIGN_OR_RETURN(const SimulationRun run,
                   Simulate(setup.workload, setup.profile, setup.options,
                            [&](double now, double end) { bar.Update("simulating", now, end); }));
  bar.Clear();
  if (writer) RETURN_IF_ERROR(writer->Close());
  if (!o.html.empty()) {
    std::ofstream file(o.html, std::ios::binary | std::ios::trunc);
    file << SimulationHtml(setup, run);
    file.close();
    if (!file) return absl::PermissionDeniedError(absl::StrCat(o.html, ": cannot be written"));
  }
  if (!WriteOut(o.json ? SimulationJson(setup, run) + "\n" : SimulationText(setup, run))) {
    return absl::InternalError("cannot write the report to stdout");
  }
  return absl::OkStatus();
}

void AddReplay(CLI::App& bench, int& exit_code) {
  auto options = std::make_shared<ReplayOptions>();
  ReplayOptions& o = *options;
  CLI::App& c = *bench.add_subcommand(
      "replay", "Run a trace's scheduler again; exit code 1 when a decision differs");
  c.add_option("TRACE", o.trace,
               "file that `sensorium serve --trace` or `bench simulate --trace` wrote")
      ->required();
  c.add_flag("--json", o.json, "print one JSON object on one line");
  c.footer("Example: sensorium bench replay monday.trace");
  c.callback([options, &exit_code] {
    if (const absl::Status s = RunReplay(*options, exit_code); !s.ok()) exit_code = Failed(s);
  });
}

void AddSimulate(CLI::App& bench, int& exit_code) {
  auto options = std::make_shared<SimulateOptions>();
  SimulateOptions& o = *options;
  BenchFlags& f = o.flags;
  CLI::App& c = *bench.add_subcommand(
      "simulate", "Run a workload through the scheduler on a device that is a list of prices");
  c.add_option(
      "--config", f.config,
      "workload file with all of this and more, see config/bench.yaml; flags go before it");
  c.add_option("--profile", f.profile,
               absl::StrCat("device: ", absl::StrJoin(BuiltInProfiles(), ", "),
                            " or a JSON file; default cpu-mini"));
  c.add_option("--rate", f.rate, "requests a second, Poisson; default 1")
      ->check(CLI::Range(0.0, 1e6));
  c.add_option("--duration", f.duration_s, "seconds of arrivals; default 60")
      ->check(CLI::Range(0.001, 1e7));
  c.add_option("--warmup", f.warmup_s, "seconds at the start that the report leaves out; default 0")
      ->check(CLI::Range(0.0, 1e7));
  c.add_option("--mix", f.mix,
               absl::StrCat("kinds of requests and their weights; default ", kDefaultBenchMix));
  c.add_option("--csv", f.csv, "requests from a file instead of --rate and --mix");
  c.add_option("--tenants", f.tenants,
               "name:share:weight, of the requests and of the device in thousandths, by commas");
  c.add_option("--policy", f.policy, "budget or first-come; default budget")
      ->check(CLI::IsMember({"budget", "first-come"}));
  c.add_option(
       "--target-step-us", f.target_step_us,
       absl::StrCat("of budget: predicted microseconds of a step; default ", kDefaultTargetStepUs))
      ->check(CLI::Range(int64_t{1}, int64_t{1'000'000'000}));
  c.add_flag("--optimistic", f.optimistic, "admit on expected length, preempt when blocks run out");
  c.add_option("--max-batch-seqs", f.max_batch_seqs, "sequences that decode together; default 64")
      ->check(CLI::Range(1, 1 << 16));
  c.add_option("--max-batch-tokens", f.max_batch_tokens, "of one forward pass; default 512")
      ->check(CLI::Range(1, 1 << 20));
  c.add_option("--max-waiting", f.max_waiting, "requests in line; default 256")
      ->check(CLI::Range(0, 1 << 20));
  c.add_option("--noise", f.noise,
               "of the device's times: standard deviation of their logarithm; default 0")
      ->check(CLI::Range(0.0, 3.0));
  c.add_option("--seed", f.seed, "the same gives the same report; default 1");
  c.add_flag("--json", o.json, "print one JSON object on one line");
  c.add_option("--html", o.html, "write charts to this file as well");
  c.add_option("--trace", o.trace, "write the scheduler's trace to this file, for bench replay");
  c.footer(
      "Example: sensorium bench simulate --rate 4 --duration 120 --mix picture:3,speech:1,text:6 "
      "\\\n"
      "             --policy budget --target-step-us 20000 --html flood.html");
  c.callback([options, &exit_code] {
    if (const absl::Status s = RunSimulate(*options); !s.ok()) exit_code = Failed(s);
  });
}

}  // namespace

void AddBenchCommand(CLI::App& app, int& exit_code) {
  CLI::App& bench = *app.add_subcommand(
      "bench", "The scheduler without a device: replay a trace, simulate a workload");
  bench.require_subcommand(1);
  AddReplay(bench, exit_code);
  AddSimulate(bench, exit_code);
}

}  // namespace sensorium
