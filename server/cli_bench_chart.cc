#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/cli_bench_report.h"

namespace sensorium {

namespace {

// Colours that stay apart for the colour-blind (Okabe & Ito).
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7"};

constexpr double kWidth = 560, kHeight = 300;  // of a chart
constexpr double kLeft = 62, kRight = 14, kTop = 34, kBottom = 46;

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;  // by rising x
  bool steps = false;                             // level until the next point
};

struct Chart {
  std::string title, x_label, y_label;
  std::vector<Series> series;
  bool log_x = false;
  double y_most = 0;  // 0: from the points
  double mark = 0;    // a vertical line there; 0: none
  std::string mark_name;
};

std::string Escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string Label(double value) { return absl::StrFormat("%g", value + 0.0); }  // no -0

// Round numbers, about `count` of them, over [low, high].
std::vector<double> Ticks(double low, double high, int count) {
  const double rough = (high - low) / count;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  double step = power;
  for (const double by : {1.0, 2.0, 5.0, 10.0}) {
    step = by * power;
    if (step >= rough) break;
  }
  std::vector<double> ticks;
  for (double n = std::ceil(low / step - 1e-9); n * step <= high * (1 + 1e-9); ++n) {
    ticks.push_back(n * step);
  }
  return ticks;
}

// 1, 10, 100; with 2 and 5 between them when that is few.
std::vector<double> LogTicks(double low, double high) {
  std::vector<double> ticks;
  const bool fine = std::log10(high / low) < 3;
  for (double power = std::pow(10, std::floor(std::log10(low))); power <= high; power *= 10) {
    for (const double by : {1.0, 2.0, 5.0}) {
      if (by > 1 && !fine) continue;
      const double tick = by * power;
      if (tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9)) ticks.push_back(tick);
    }
  }
  return ticks;
}

std::string Svg(const Chart& chart) {
  double low = INFINITY, high = -INFINITY, most = chart.y_most;
  const auto see = [&](double x) {
    if (chart.log_x && x <= 0) return;
    low = std::min(low, x);
    high = std::max(high, x);
  };
  for (const Series& s : chart.series) {
    for (const auto& [x, y] : s.points) {
      see(x);
      if (chart.y_most == 0) most = std::max(most, y * 1.05);
    }
  }
  if (chart.mark > 0) see(chart.mark);
  std::string svg = absl::StrFormat(
      "<svg viewBox=\"0 0 %g %g\" role=\"img\" aria-label=\"%s\">\n"
      "<text class=\"title\" x=\"%g\" y=\"18\">%s</text>\n",
      kWidth, kHeight, Escape(chart.title), kLeft, Escape(chart.title));
  if (low > high) {
    return svg +
           absl::StrFormat("<text x=\"%g\" y=\"%g\">no samples</text></svg>\n", kLeft, kHeight / 2);
  }
  if (chart.log_x) {
    if (high < low * 2) {
      low /= 2;
      high *= 2;
    }
    low *= 0.9;
    high *= 1.1;
  } else {
    low = std::min(low, 0.0);
    if (high <= low) high = low + 1;
  }
  if (most <= 0) most = 1;
  const double right = kWidth - kRight, bottom = kHeight - kBottom;
  const auto x_at = [&](double x) {
    const double share = chart.log_x ? std::log(std::max(x, low) / low) / std::log(high / low)
                                     : (x - low) / (high - low);
    return kLeft + share * (right - kLeft);
  };
  const auto y_at = [&](double y) {
    return bottom - std::clamp(y / most, 0.0, 1.0) * (bottom - kTop);
  };

  for (const double y : Ticks(0, most, 5)) {
    absl::StrAppendFormat(
        &svg,
        "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>"
        "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
        kLeft, right, y_at(y), y_at(y), kLeft - 6, y_at(y) + 4, Label(y));
  }
  for (const double x : chart.log_x ? LogTicks(low, high) : Ticks(low, high, 6)) {
    absl::StrAppendFormat(
        &svg,
        "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>"
        "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n",
        x_at(x), x_at(x), kTop, bottom, x_at(x), bottom + 16, Label(x));
  }
  absl::StrAppendFormat(
      &svg,
      "<text class=\"axis\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>"
      "<text class=\"axis\" transform=\"translate(16 %.1f) rotate(-90)\" "
      "text-anchor=\"middle\">%s</text>\n",
      (kLeft + right) / 2, kHeight - 10, Escape(chart.x_label), (kTop + bottom) / 2,
      Escape(chart.y_label));
  if (chart.mark > 0) {
    const bool left_of_it = x_at(chart.mark) > (kLeft + right) / 2;
    absl::StrAppendFormat(
        &svg,
        "<line class=\"mark\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>"
        "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n",
        x_at(chart.mark), x_at(chart.mark), kTop, bottom, x_at(chart.mark) + (left_of_it ? -5 : 5),
        kTop + 12, left_of_it ? "end" : "start", Escape(chart.mark_name));
  }
  double legend_x = right;
  for (size_t i = chart.series.size(); i-- > 0;) {
    const Series& s = chart.series[i];
    const char* colour = kColours[i % std::size(kColours)];
    std::string points;
    double last_y = 0;
    for (size_t p = 0; p < s.points.size(); ++p) {
      const auto [x, y] = s.points[p];
      // A cumulative share rises at its time, a level holds until the next one.
      if (p > 0 && s.steps) {
        absl::StrAppendFormat(&points, " %.1f,%.1f", x_at(x), y_at(last_y));
      } else if (p == 0 && chart.log_x) {
        absl::StrAppendFormat(&points, "%.1f,%.1f", x_at(x), y_at(0));
      }
      absl::StrAppendFormat(&points, " %.1f,%.1f", x_at(x), y_at(y));
      last_y = y;
    }
    absl::StrAppendFormat(&svg, "<polyline points=\"%s\" style=\"stroke:%s\"/>\n", points, colour);
    legend_x -= 7.0 * static_cast<double>(s.name.size()) + 26;
    absl::StrAppendFormat(&svg,
                          "<rect x=\"%.1f\" y=\"9\" width=\"14\" height=\"4\" fill=\"%s\"/>"
                          "<text class=\"tick\" x=\"%.1f\" y=\"15\">%s</text>\n",
                          legend_x, colour, legend_x + 18, Escape(s.name));
  }
  return svg + "</svg>\n";
}

Series CdfOf(const GroupReport& group, const LatencyHistogram& h) {
  Series series{.name = group.name, .steps = true};
  for (const auto& [us, share] : h.Cdf()) {
    series.points.emplace_back(std::max(static_cast<double>(us), 1.0) / 1000, share);
  }
  return series;
}

}  // namespace

std::string SimulationHtml(const BenchSetup& setup, const SimulationRun& run) {
  const SimulationReport& r = run.report;
  Chart between{.title = "Time between tokens",
                .x_label = "milliseconds from one token to the next",
                .y_label = "share of tokens",
                .log_x = true,
                .y_most = 1};
  if (r.stall_bound_us > 0) {
    between.mark = static_cast<double>(r.stall_bound_us) / 1000;
    between.mark_name = absl::StrFormat("stated bound, %.1f ms", between.mark);
  }
  Chart first{.title = "Time to the first token",
              .x_label = "milliseconds from arrival to the first token",
              .y_label = "share of requests",
              .log_x = true,
              .y_most = 1};
  for (const GroupReport& kind : r.kinds) {
    if (kind.inter_token.count()) between.series.push_back(CdfOf(kind, kind.inter_token));
    if (kind.first_token.count()) first.series.push_back(CdfOf(kind, kind.first_token));
  }
  Series waiting{.name = "waiting", .steps = true}, running{.name = "running", .steps = true},
      busy{.name = "busy", .steps = true};
  for (const SimulationMoment& m : r.moments) {
    waiting.points.emplace_back(m.time_s, m.waiting);
    running.points.emplace_back(m.time_s, m.running);
    busy.points.emplace_back(m.time_s, 100 * m.utilisation);
  }
  const Chart queue{.title = "Requests",
                    .x_label = "seconds since the start",
                    .y_label = "requests",
                    .series = {waiting, running}};
  const Chart device{.title = "Device",
                     .x_label = "seconds since the start",
                     .y_label = "percent of the time",
                     .series = {busy},
                     .y_most = 100};
  return absl::StrCat(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<title>sensorium bench simulate</title>\n<style>\n"
      "body{font:14px/1.5 system-ui,sans-serif;color:#222;background:#fff;margin:24px auto;"
      "max-width:1180px;padding:0 16px}\n"
      "h1{font-size:20px}pre{overflow-x:auto;font-size:12px;background:#f6f6f6;padding:12px}\n"
      ".charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:20px}\n"
      "svg{width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:#222}\n"
      "svg .title{font-size:14px;font-weight:600}svg .tick{font-size:11px;fill:#555}\n"
      "svg .grid{stroke:#e4e4e4}svg .mark{stroke:#222;stroke-dasharray:4 3}\n"
      "svg polyline{fill:none;stroke-width:1.8}\n</style></head><body>\n"
      "<h1>sensorium bench simulate: ",
      Escape(setup.profile.name), "</h1>\n<p>", Escape(setup.profile.source),
      "</p>\n<div class=\"charts\">\n", Svg(between), Svg(first), Svg(queue), Svg(device),
      "</div>\n<pre>", Escape(SimulationText(setup, run)), "</pre>\n</body></html>\n");
}

}  // namespace sensorium
