// Encoding speed on plain English, one core. Prints MB/s (bytes_per_second).
//   tokenizer_bench [--tokenizer=DIR ...]   directories with a tokenizer.json; default: the bundled
#include <benchmark/benchmark.h>

#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "runtime/tokenizer/tokenizer.h"

namespace sensorium {
namespace {

// A megabyte of sentences over a few hundred common words, fixed seed: word lengths and repetition
// as in running text, without a corpus in the tree.
std::string PlainEnglish() {
  static const char* kWords[] = {
      "the",     "of",       "and",      "to",     "in",        "that",     "was",     "his",
      "he",      "it",       "with",     "is",     "for",       "as",       "had",     "you",
      "not",     "be",       "her",      "on",     "at",        "by",       "which",   "have",
      "or",      "from",     "this",     "him",    "but",       "all",      "she",     "they",
      "were",    "my",       "are",      "me",     "one",       "their",    "so",      "an",
      "said",    "them",     "we",       "who",    "would",     "been",     "will",    "no",
      "when",    "there",    "if",       "more",   "out",       "up",       "into",    "do",
      "any",     "your",     "what",     "has",    "man",       "could",    "other",   "than",
      "our",     "some",     "very",     "time",   "upon",      "about",    "may",     "its",
      "only",    "now",      "like",     "little", "then",      "can",      "should",  "made",
      "did",     "us",       "such",     "great",  "before",    "must",     "these",   "two",
      "see",     "know",     "over",     "much",   "down",      "after",    "first",   "good",
      "men",     "own",      "never",    "most",   "old",       "shall",    "day",     "where",
      "those",   "came",     "come",     "himself", "way",      "work",     "life",    "without",
      "through", "morning",  "question", "window", "beautiful", "together", "nothing", "country",
      "picture", "language", "machine",  "attention", "however", "possible", "important", "general"};
  std::mt19937 random(7);
  std::string text;
  while (text.size() < 1 << 20) {
    const int words = 6 + static_cast<int>(random() % 14);
    for (int w = 0; w < words; ++w) {
      std::string word = kWords[random() % std::size(kWords)];
      if (w == 0) word[0] = static_cast<char>(word[0] - 32);
      text += (w ? " " : "") + word;
      if (random() % 12 == 0) text += ",";
      if (random() % 40 == 0) text += " " + std::to_string(random() % 2000);
    }
    text += random() % 8 ? ". " : ".\n\n";
  }
  return text;
}

void EncodeEnglish(benchmark::State& state, const std::string& dir) {
  const auto tokenizer = Tokenizer::FromFile(dir + "/tokenizer.json");
  if (!tokenizer.ok()) {
    state.SkipWithError(std::string(tokenizer.status().message()).c_str());
    return;
  }
  const std::string text = PlainEnglish();
  size_t tokens = 0;
  for (auto _ : state) {
    const std::vector<int32_t> ids = (*tokenizer)->Encode(text);
    tokens = ids.size();
    benchmark::DoNotOptimize(ids.data());
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
  state.counters["bytes/token"] = static_cast<double>(text.size()) / static_cast<double>(tokens);
}

}  // namespace
}  // namespace sensorium

int main(int argc, char** argv) {
  std::vector<std::string> dirs;
  std::vector<char*> rest;
  for (int i = 0; i < argc; ++i) {
    const std::string arg = argv[i];
    const std::string flag = "--tokenizer=";
    if (arg.starts_with(flag)) {
      dirs.push_back(arg.substr(flag.size()));
    } else {
      rest.push_back(argv[i]);
    }
  }
  if (dirs.empty()) dirs = {SENSORIUM_MODELS "/molmo-mini", SENSORIUM_MODELS "/whisper-mini"};
  for (const std::string& dir : dirs) {
    benchmark::RegisterBenchmark(
        ("EncodeEnglish/" + dir.substr(dir.find_last_of('/') + 1)).c_str(),
        [dir](benchmark::State& state) { sensorium::EncodeEnglish(state, dir); })
        ->Unit(benchmark::kMillisecond);
  }
  int rest_count = static_cast<int>(rest.size());
  benchmark::Initialize(&rest_count, rest.data());
  if (benchmark::ReportUnrecognizedArguments(rest_count, rest.data())) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
