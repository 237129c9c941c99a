// The bundled models do their task as well as their cards (accuracy.json) say, judged by what is on
// the pictures and in the recordings, not by the reference's output. The samples are few: a share
// may miss the card's by two standard deviations of a sample of that size. And both models still
// do it in bfloat16.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/cpu/cpu_backend.h"
#include "runtime/engine/engine.h"
#include "runtime/media/image.h"

namespace sensorium {
namespace {

using testing::HasSubstr;

const std::string kMolmo = std::string(SENSORIUM_MODELS) + "/molmo-mini/";
const std::string kWhisper = std::string(SENSORIUM_MODELS) + "/whisper-mini/";

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  CHECK(file.good()) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

nlohmann::json ReadJson(const std::string& path) { return nlohmann::json::parse(ReadFile(path)); }

// Two standard deviations of the share of hits among n tries that hit at this rate.
double Margin(double rate, double n) { return 2 * std::sqrt(rate * (1 - rate) / n); }

std::unique_ptr<Engine> MakeEngine(DType dtype) {
  EngineConfig config;
  config.models = {{"molmo-mini", kMolmo}, {"whisper-mini", kWhisper}};
  config.kv_cache_bytes = 64 << 20;
  auto backend = CpuBackend::Create({.dtype = dtype});
  CHECK(backend.ok()) << backend.status();
  auto engine = Engine::Create(config, *std::move(backend));
  CHECK(engine.ok()) << engine.status();
  return *std::move(engine);
}

struct Answer {
  std::string text;
  std::vector<std::pair<double, double>> points;  // percent of the picture's sides
};

Answer Ask(Engine& engine, const std::string& image, const std::string& question) {
  GenerateRequest request;
  request.model = "molmo-mini";
  Message message;
  message.parts.resize(2);
  message.parts[0].kind = Part::Kind::kImage;
  message.parts[0].data = ReadFile(kMolmo + image);
  message.parts[1].text = question;
  const std::string& bytes = message.parts[0].data;
  const auto info = ProbeImage({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, {});
  CHECK(info.ok()) << info.status();
  request.messages.push_back(message);
  const auto queue = engine.Generate(std::move(request));
  Answer answer;
  while (true) {
    const GenerateEvent event = queue->Pop();
    if (const auto* point = std::get_if<GeneratePoint>(&event)) {
      answer.points.push_back({100.0 * point->x / info->width, 100.0 * point->y / info->height});
    } else if (const auto* finished = std::get_if<GenerateFinished>(&event)) {
      answer.text = finished->text;
    } else if (const auto* end = std::get_if<StreamEnd>(&event)) {
      EXPECT_TRUE(end->status.ok()) << end->status;
      return answer;
    }
  }
}

TranscribeFinished Hear(Engine& engine, const std::string& file) {
  TranscribeRequest request;
  request.model = "whisper-mini";
  request.audio = ReadFile(kWhisper + file);
  request.options.condition_on_previous_text = false;
  const auto queue = engine.Transcribe(std::move(request));
  TranscribeFinished heard;
  while (true) {
    const TranscribeEvent event = queue->Pop();
    if (const auto* finished = std::get_if<TranscribeFinished>(&event)) {
      heard = *finished;
    } else if (const auto* end = std::get_if<StreamEnd>(&event)) {
      EXPECT_TRUE(end->status.ok()) << end->status;
      return heard;
    }
  }
}

// ---- Pictures

struct Object {
  std::string color, shape;
  double x = 0, y = 0;  // percent
};

std::vector<Object> Objects(const nlohmann::json& json) {
  std::vector<Object> objects;
  for (const auto& o : json) objects.push_back({o[0], o[1], o[2], o[3]});
  return objects;
}

struct PointScore {
  int wanted = 0, given = 0, met = 0;
};

// A point is met within one cell of the 5 % grid in both directions.
void ScorePoints(const std::vector<Object>& objects, const Answer& answer, PointScore& score) {
  constexpr double kCell = 5.01;
  std::vector<bool> taken(answer.points.size(), false);
  score.wanted += static_cast<int>(objects.size());
  score.given += static_cast<int>(answer.points.size());
  for (const Object& o : objects) {
    for (size_t i = 0; i < taken.size(); ++i) {
      const auto& [x, y] = answer.points[i];
      if (taken[i] || std::abs(x - o.x) > kCell || std::abs(y - o.y) > kCell) continue;
      taken[i] = true;
      ++score.met;
      break;
    }
  }
}

// Whether an answer says what is on the picture.
bool IsRight(const std::string& question, const std::vector<Object>& objects,
             const Answer& answer) {
  std::smatch m;
  const auto of = [&](const std::string& color, const std::string& shape) {
    std::vector<Object> found;
    for (const Object& o : objects) {
      if ((color.empty() || o.color == color) && o.shape == shape) found.push_back(o);
    }
    return found;
  };
  if (std::regex_match(question, m, std::regex("How many (\\w+) (\\w+)s are there\\?"))) {
    const size_t count = of(m[1], m[2]).size();
    std::smatch total;
    if (!std::regex_search(answer.text, total, std::regex("total of (\\d+)"))) {
      return count == 0 && answer.text == "There are none.";
    }
    return std::stoul(total[1]) == count;
  }
  if (std::regex_match(question, m, std::regex("Point to the (\\w+) (\\w+)\\."))) {
    const auto wanted = of(m[1], m[2]);
    if (wanted.empty()) return answer.text == "This isn't in the image.";
    PointScore score;
    ScorePoints(wanted, answer, score);
    return score.met == score.wanted && score.given == score.wanted;
  }
  if (std::regex_match(question, m, std::regex("What color is the (\\w+)\\?"))) {
    const auto found = of("", m[1]);
    return std::any_of(found.begin(), found.end(), [&](const Object& o) {
      return answer.text == "The " + o.shape + " is " + o.color + ".";
    });
  }
  if (std::regex_match(question, m, std::regex("vqa2: Is there a (\\w+) (\\w+)\\?"))) {
    return answer.text == (of(m[1], m[2]).empty() ? "no" : "yes");
  }
  EXPECT_EQ(question, "Describe this image.");
  std::multiset<std::string> said, there;
  static const std::regex kObject("an? (\\w+ \\w+)");
  for (std::sregex_iterator i(answer.text.begin(), answer.text.end(), kObject), end; i != end;
       ++i) {
    said.insert((*i)[1]);
  }
  for (const Object& o : objects) there.insert(o.color + " " + o.shape);
  return said == there;
}

TEST(AccuracyTest, MolmoMiniSeesAsWellAsItsCardSays) {
  const auto card = ReadJson(kMolmo + "accuracy.json")["accuracy"];
  const auto engine = MakeEngine(DType::kFloat32);
  int asked = 0, right = 0;
  PointScore points;
  for (const auto& c : ReadJson(kMolmo + "answers.json")) {
    const std::string question = c["question"];
    const std::vector<Object> objects = Objects(c["objects"]);
    const Answer answer = Ask(*engine, c["image"], question);
    ++asked;
    right += IsRight(question, objects, answer);
    std::smatch m;
    static const std::regex kPointed("(?:How many|Point to the) (\\w+) (circle|square)s?\\b.*");
    if (!std::regex_match(question, m, kPointed)) continue;
    std::vector<Object> wanted;
    for (const Object& o : objects) {
      if (o.color == m[1] && o.shape == m[2]) wanted.push_back(o);
    }
    ScorePoints(wanted, answer, points);
  }
  ASSERT_EQ(asked, 20);
  ASSERT_GE(points.wanted, 4);
  ASSERT_GT(points.given, 0);
  const double all = card["all"], recall = card["point_recall"],
               precision = card["point_precision"];
  EXPECT_GE(double(right) / asked, all - Margin(all, asked)) << right << " of " << asked;
  EXPECT_GE(double(points.met) / points.wanted, recall - Margin(recall, points.wanted));
  EXPECT_GE(double(points.met) / points.given, precision - Margin(precision, points.given));
}

// ---- Recordings

// Lower case, without punctuation.
std::vector<std::string> Words(const std::string& text) {
  std::vector<std::string> words(1);
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = text[i];
    if (c == 0xC2) {  // U+0080 to U+00BF: the inverted marks of Spanish among them
      ++i;
    } else if (c == ' ') {
      if (!words.back().empty()) words.emplace_back();
    } else if (c >= 0x80 || std::isalnum(c)) {
      words.back() += static_cast<char>(std::tolower(c));
    }
  }
  if (words.back().empty()) words.pop_back();
  return words;
}

// Levenshtein's distance in words.
int WordErrors(const std::vector<std::string>& said, const std::vector<std::string>& heard) {
  std::vector<int> row(heard.size() + 1);
  for (size_t j = 0; j < row.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= said.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j < row.size(); ++j) {
      const int replaced = diagonal + (said[i - 1] != heard[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

TEST(AccuracyTest, WordErrorsAreCountedAsTheyAre) {
  EXPECT_EQ(Words("¿Dónde está? Here, it IS."),
            (std::vector<std::string>{"dónde", "está", "here", "it", "is"}));
  EXPECT_EQ(WordErrors(Words("a b c d"), Words("a x c")), 2);
  EXPECT_EQ(WordErrors(Words(""), Words("a b")), 2);
}

TEST(AccuracyTest, WhisperMiniHearsAsWellAsItsCardSays) {
  const auto card = ReadJson(kWhisper + "accuracy.json")["accuracy"];
  const auto engine = MakeEngine(DType::kFloat32);
  std::map<std::string, std::pair<int, int>> by_language;  // errors, words
  int recordings = 0;
  const auto transcripts = ReadJson(kWhisper + "transcripts.json");
  for (const auto& [file, c] : transcripts.items()) {
    SCOPED_TRACE(file);
    const TranscribeFinished heard = Hear(*engine, file);
    EXPECT_EQ(heard.text, c["text"].get<std::string>());
    EXPECT_EQ(heard.language, c["language"].get<std::string>());
    std::string truth;
    for (const auto& sentence : c["truth"]) truth += sentence["text"].get<std::string>() + " ";
    const std::vector<std::string> said = Words(truth);
    EXPECT_EQ(said.size(), c["words"].get<size_t>());
    auto& [errors, words] = by_language[c["language"]];
    errors += WordErrors(said, Words(heard.text));
    words += static_cast<int>(said.size());
    ++recordings;
  }
  EXPECT_EQ(recordings, 4);
  ASSERT_EQ(by_language.size(), 2u);
  for (const auto& [language, score] : by_language) {
    const auto& [errors, words] = score;
    const double wer = card[language]["wer"];
    EXPECT_LE(double(errors) / words, wer + Margin(wer, words))
        << language << ": " << errors << " errors in " << words;
  }
}

TEST(AccuracyTest, BothModelsStillDoTheirTaskInBfloat16) {
  const auto engine = MakeEngine(DType::kBFloat16);
  const Answer answer = Ask(*engine, "shapes.png", "How many red circles are there?");
  EXPECT_THAT(answer.text, HasSubstr("total of 3"));
  EXPECT_EQ(answer.points.size(), 3u);
  EXPECT_EQ(Hear(*engine, "question.wav").text, " How many red circles are there?");
}

}  // namespace
}  // namespace sensorium
