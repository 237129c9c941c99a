#include "server/cli_bench_report.h"

#include <cstdio>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "server/text_table.h"

namespace sensorium {

namespace {

using Json = nlohmann::ordered_json;

// 850 us, 12.3 ms, 4.56 s
std::string Time(double us) {
  if (us < 1000) return absl::StrFormat("%.0f us", us);
  if (us < 1e6) return absl::StrFormat("%.1f ms", us / 1e3);
  return absl::StrFormat("%.2f s", us / 1e6);
}

std::string Quantiles(const LatencyHistogram& h) {
  if (h.count() == 0) return "-";
  return absl::StrCat(Time(static_cast<double>(h.QuantileUs(0.5))), " / ",
                      Time(static_cast<double>(h.QuantileUs(0.9))), " / ",
                      Time(static_cast<double>(h.QuantileUs(0.99))));
}

std::vector<std::string> Row(const GroupReport& g) {
  return {g.name,
          absl::StrCat(g.arrived),
          absl::StrCat(g.completed),
          absl::StrCat(g.refused),
          absl::StrCat(g.expired),
          Quantiles(g.queueing),
          Quantiles(g.first_token),
          Quantiles(g.inter_token),
          Quantiles(g.end_to_end)};
}

Json TimesJson(const LatencyHistogram& h) {
  return {{"count", h.count()},           {"mean_us", h.mean_us()},
          {"p50_us", h.QuantileUs(0.5)},  {"p90_us", h.QuantileUs(0.9)},
          {"p99_us", h.QuantileUs(0.99)}, {"max_us", h.max_us()}};
}

// "63.1 %", of something
std::string Share(int64_t part, int64_t whole) {
  if (whole == 0) return "-";
  return absl::StrFormat("%.1f %%", 100 * static_cast<double>(part) / static_cast<double>(whole));
}

Json CacheJson(const CacheUse& c) {
  return {{"prompt_tokens", c.prompt_tokens},
          {"cached_tokens", c.cached_tokens},
          {"pictures", c.pictures},
          {"cached_pictures", c.cached_pictures},
          {"windows", c.windows},
          {"cached_windows", c.cached_windows}};
}

Json GroupJson(const GroupReport& g) {
  return {{"name", g.name},
          {"arrived", g.arrived},
          {"completed", g.completed},
          {"refused", g.refused},
          {"expired", g.expired},
          {"output_tokens", g.output_tokens},
          {"queueing", TimesJson(g.queueing)},
          {"first_token", TimesJson(g.first_token)},
          {"inter_token", TimesJson(g.inter_token)},
          {"end_to_end", TimesJson(g.end_to_end)},
          {"cache", CacheJson(g.cache)}};
}

// Names come from files: what is not UTF-8 becomes U+FFFD.
std::string OneLine(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

std::string ReplayText(const ReplayReport& r) {
  std::string text = absl::StrFormat(
      "%d plans, %d of them carried out, %d items; %d jobs, %d admissions, %d preemptions, "
      "%d refusals\n"
      "step time, predicted against recorded: %.1f %% off at the median, %.1f %% at p99; %s "
      "against "
      "%s in all\n"
      "%.1f us a plan on this machine\n",
      r.plans, r.steps, r.items, r.jobs, r.admissions, r.preemptions, r.refusals,
      100 * r.median_step_error, 100 * r.p99_step_error, Time(static_cast<double>(r.predicted_us)),
      Time(static_cast<double>(r.recorded_us)), r.host_us_per_plan);
  if (!r.first_mismatch) return text + "every decision was reproduced\n";
  const ReplayMismatch& m = *r.first_mismatch;
  return text + absl::StrCat(r.mismatches, " decisions differ, the first in line ", m.line, ": ",
                             m.what, "\n  recorded: ", m.recorded, "\n  replayed: ", m.replayed,
                             "\n");
}

std::string ReplayJson(const ReplayReport& r) {
  Json json = {{"plans", r.plans},
               {"steps", r.steps},
               {"items", r.items},
               {"jobs", r.jobs},
               {"admissions", r.admissions},
               {"preemptions", r.preemptions},
               {"refusals", r.refusals},
               {"mismatches", r.mismatches},
               {"first_mismatch", nullptr},
               {"median_step_error", r.median_step_error},
               {"p99_step_error", r.p99_step_error},
               {"predicted_us", r.predicted_us},
               {"recorded_us", r.recorded_us},
               {"host_us_per_plan", r.host_us_per_plan}};
  if (r.first_mismatch) {
    json["first_mismatch"] = {{"line", r.first_mismatch->line},
                              {"what", r.first_mismatch->what},
                              {"recorded", r.first_mismatch->recorded},
                              {"replayed", r.first_mismatch->replayed}};
  }
  return OneLine(json);
}

std::string SimulationText(const BenchSetup& setup, const SimulationRun& run) {
  const SimulationReport& r = run.report;
  const SimulationOptions& o = setup.options;
  std::string text = absl::StrCat(
      "device ", setup.profile.name,
      setup.profile.predicted ? " (computed from published figures, never measured)" : "",
      "; policy ",
      o.target_step_us > 0 ? absl::StrCat("budget, ", o.target_step_us, " us a step")
                           : "first come, first served",
      "; seed ", o.seed, "\n");
  absl::StrAppendFormat(&text,
                        "%.2f requests/s, %.1f tokens/s over %.1f s; device %.1f %% busy; %.2f "
                        "requests in the system\n"
                        "%d steps, %d preemptions; fairness %.3f (Jain, device time over weight)\n",
                        r.requests_per_s, r.tokens_per_s, r.window_s, 100 * r.utilisation,
                        r.mean_in_system, r.steps, r.preemptions, r.fairness);
  const CacheUse& cache = r.total.cache;
  absl::StrAppendFormat(&text,
                        "found in the caches: %s of the prompts' tokens, %s of the pictures, %s of "
                        "the audio windows; "
                        "%d blocks evicted\n",
                        Share(cache.cached_tokens, cache.prompt_tokens),
                        Share(cache.cached_pictures, cache.pictures),
                        Share(cache.cached_windows, cache.windows), r.evicted_blocks);
  if (o.target_step_us > 0) {
    absl::StrAppendFormat(
        &text,
        "stated bound on the wait for a token: %s = decodes %s + the target or a unit of %s\n",
        Time(static_cast<double>(r.stall_bound_us)),
        Time(static_cast<double>(r.dearest_decodes_us)),
        Time(static_cast<double>(r.dearest_unit_us)));
  }
  absl::StrAppendFormat(
      &text, "step time, predicted against taken: %.1f %% off at the median, %.1f %% at p99\n",
      100 * r.median_step_error, 100 * r.p99_step_error);
  std::vector<std::vector<std::string>> rows = {{"", "REQUESTS", "ANSWERED", "REFUSED", "LATE",
                                                 "QUEUEING p50/p90/p99", "FIRST TOKEN",
                                                 "BETWEEN TOKENS", "END TO END"}};
  for (const GroupReport& kind : r.kinds) rows.push_back(Row(kind));
  if (r.tenants.size() > 1) {
    for (const TenantReport& t : r.tenants) {
      rows.push_back(Row(t));
      rows.back()[0] =
          absl::StrFormat("tenant %s, weight %d, %.2f s of device", t.name, t.weight, t.device_s);
    }
  }
  rows.push_back(Row(r.total));
  absl::StrAppend(&text, "\n", TextTable(rows));
  absl::StrAppendFormat(&text, "\n%.1f us a plan on this machine; simulated %.1f s in %.2f s\n",
                        run.host_us_per_plan, r.simulated_s, run.wall_s);
  return text;
}

std::string SimulationJson(const BenchSetup& setup, const SimulationRun& run) {
  const SimulationReport& r = run.report;
  Json kinds = Json::array(), tenants = Json::array(), moments = Json::array();
  for (const GroupReport& kind : r.kinds) kinds.push_back(GroupJson(kind));
  for (const TenantReport& t : r.tenants) {
    Json tenant = GroupJson(t);
    tenant["weight"] = t.weight;
    tenant["device_s"] = t.device_s;
    tenants.push_back(std::move(tenant));
  }
  for (const SimulationMoment& m : r.moments) {
    moments.push_back({{"time_s", m.time_s},
                       {"waiting", m.waiting},
                       {"running", m.running},
                       {"utilisation", m.utilisation}});
  }
  return OneLine({{"profile", setup.profile.name},
                  {"predicted_profile", setup.profile.predicted},
                  {"profile_source", setup.profile.source},
                  {"policy", setup.options.target_step_us > 0 ? "budget" : "first-come"},
                  {"target_step_us", setup.options.target_step_us},
                  {"seed", setup.options.seed},
                  {"window_s", r.window_s},
                  {"simulated_s", r.simulated_s},
                  {"requests_per_s", r.requests_per_s},
                  {"tokens_per_s", r.tokens_per_s},
                  {"utilisation", r.utilisation},
                  {"mean_in_system", r.mean_in_system},
                  {"fairness", r.fairness},
                  {"steps", r.steps},
                  {"preemptions", r.preemptions},
                  {"evicted_blocks", r.evicted_blocks},
                  {"stall_bound_us", r.stall_bound_us},
                  {"dearest_decodes_us", r.dearest_decodes_us},
                  {"dearest_unit_us", r.dearest_unit_us},
                  {"median_step_error", r.median_step_error},
                  {"p99_step_error", r.p99_step_error},
                  {"total", GroupJson(r.total)},
                  {"kinds", std::move(kinds)},
                  {"tenants", std::move(tenants)},
                  {"moments", std::move(moments)},
                  {"host_us_per_plan", run.host_us_per_plan},
                  {"wall_s", run.wall_s}});
}

}  // namespace sensorium
