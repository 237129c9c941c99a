// `sensorium models`: what a server, or a checkpoint directory, has to offer.
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "runtime/base/status_macros.h"
#include "server/cli.h"
#include "server/cli_engine.h"
#include "server/text_table.h"

namespace sensorium {

namespace {

constexpr char kDefaultServer[] = "localhost:50051";

struct ModelsOptions {
  ClientOptions client;
  bool json = false;
};

absl::Status ShowModels(ModelsOptions& o) {
  if (o.client.models.empty() && o.client.server.empty()) o.client.server = kDefaultServer;
  ASSIGN_OR_RETURN(OpenedClient opened, OpenClient(o.client));
  ASSIGN_OR_RETURN(const v1::ListModelsResponse models, opened.client->ListModels());
  std::string out;
  if (o.json) {
    for (const v1::Model& model : models.models()) out += ModelJson(model) + "\n";
  } else {
    out = ModelsTable(models);
  }
  if (!WriteOut(out)) return absl::InternalError("cannot write the list to stdout");
  return absl::OkStatus();
}

// 3.9 M, 7.0 B
std::string Count(int64_t n) {
  char text[32];
  if (n >= 1'000'000'000) {
    std::snprintf(text, sizeof text, "%.1f B", static_cast<double>(n) / 1e9);
  } else {
    std::snprintf(text, sizeof text, "%.1f M", static_cast<double>(n) / 1e6);
  }
  return text;
}

std::vector<std::string> Row(const v1::Model& m) {
  std::vector<std::string> in;
  if (m.text_in()) in.push_back("text");
  if (m.image_in()) in.push_back("image");
  if (m.audio_in()) in.push_back("audio");
  std::string languages = "-";
  if (m.languages_size() > 0 && m.languages_size() <= 4) {
    languages = absl::StrJoin(m.languages(), ",");
  } else if (m.languages_size() > 0) {
    languages = absl::StrCat(m.languages_size());
  }
  const std::string window =
      m.window_ms() ? absl::StrCat(static_cast<double>(m.window_ms()) / 1000, " s") : "-";
  return {m.name(),
          m.kind(),
          m.architecture(),
          m.dtype(),
          Count(m.parameters()),
          absl::StrCat(m.context_tokens()),
          absl::StrCat(m.vocab_size()),
          absl::StrJoin(in, ","),
          languages,
          window};
}

}  // namespace

std::string ModelsTable(const v1::ListModelsResponse& models) {
  std::vector<std::vector<std::string>> rows = {{"NAME", "KIND", "ARCHITECTURE", "DTYPE",
                                                 "PARAMETERS", "CONTEXT", "VOCABULARY", "INPUT",
                                                 "LANGUAGES", "WINDOW"}};
  for (const v1::Model& model : models.models()) rows.push_back(Row(model));
  return TextTable(rows);
}

std::string ModelJson(const v1::Model& m) {
  return Dump({{"name", m.name()},
               {"kind", m.kind()},
               {"architecture", m.architecture()},
               {"dtype", m.dtype()},
               {"parameters", m.parameters()},
               {"context_tokens", m.context_tokens()},
               {"vocab_size", m.vocab_size()},
               {"text_in", m.text_in()},
               {"image_in", m.image_in()},
               {"audio_in", m.audio_in()},
               {"languages", std::vector<std::string>(m.languages().begin(), m.languages().end())},
               {"window_ms", m.window_ms()}});
}

void AddModelsCommand(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<ModelsOptions>();
  ModelsOptions& o = *options;
  CLI::App& c = *app.add_subcommand("models", "List the models of a server or of directories");
  c.add_option("--model", o.client.models,
               "checkpoint directory or bundled name; may be given several times")
      ->allow_extra_args(false);
  AddClientOptions(c, o.client);
  c.get_option("--server")
      ->description("of a running server; default localhost:50051 when there is no --model");
  c.get_option("--model")->excludes(c.get_option("--server"));
  c.add_flag("--json", o.json, "print one JSON object a line for each model");
  c.callback([options, &exit_code] {
    if (const absl::Status status = ShowModels(*options); !status.ok()) exit_code = Failed(status);
  });
}

}  // namespace sensorium
