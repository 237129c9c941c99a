// What a picture's size decides: tiling, image tokens, and the place of every pooled vector.
// Source: MolmoImageProcessor.image_to_patches_and_tokens and select_tiling of the reference.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/media/molmo_image.h"
#include "runtime/media/resize.h"

namespace sensorium {

namespace {

constexpr int32_t kDropped = -100;

struct Tiling {
  int32_t rows, cols;
};

// All grids of at most max_crops tiles: by number of tiles, then by rows.
std::vector<Tiling> Candidates(int32_t max_crops) {
  std::vector<Tiling> candidates;
  for (int32_t rows = 1; rows <= max_crops; ++rows) {
    for (int32_t cols = 1; rows * cols <= max_crops; ++cols) candidates.push_back({rows, cols});
  }
  std::sort(candidates.begin(), candidates.end(), [](const Tiling& a, const Tiling& b) {
    return std::pair(a.rows * a.cols, a.rows) < std::pair(b.rows * b.cols, b.rows);
  });
  return candidates;
}

// The grid whose picture needs the least enlarging; if all would shrink it, the least shrinking.
// height and width are the picture's without the margins, in pixels; zero and less go through the
// same float32 formulas as in the reference (x / 0 is infinite, a negative scale is below 1).
Tiling SelectTiling(int32_t height, int32_t width, int32_t window, int32_t max_crops) {
  Tiling best{1, 1};
  float best_scale = 0;
  bool found = false, best_enlarges = false;
  for (const Tiling& t : Candidates(max_crops)) {
    const float y = static_cast<float>(t.rows * window) / static_cast<float>(height);
    const float x = static_cast<float>(t.cols * window) / static_cast<float>(width);
    const float scale = std::min(y, x);
    const bool enlarges = scale >= 1.0f;
    // Ties go to the earlier candidate.
    const bool better = !found || (enlarges != best_enlarges ? enlarges
                                   : enlarges                ? scale < best_scale
                                                             : scale > best_scale);
    if (!better) continue;
    found = true;
    best = t;
    best_scale = scale;
    best_enlarges = enlarges;
  }
  return best;
}

// A part of the prompt: <im_start>, rows of patches with <im_col> behind each, <im_end>.
void AppendTokens(int32_t rows, int32_t cols, std::vector<ImageToken>& tokens) {
  tokens.push_back(ImageToken::kStart);
  for (int32_t r = 0; r < rows; ++r) {
    tokens.insert(tokens.end(), cols, ImageToken::kPatch);
    tokens.push_back(ImageToken::kCol);
  }
  tokens.push_back(ImageToken::kEnd);
}

}  // namespace

absl::StatusOr<MolmoImageLayout> LayOutMolmoImage(int32_t width, int32_t height,
                                                  const MolmoImageConfig& config) {
  if (width < 1 || height < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the picture has ", width, "x", height, " pixels"));
  }
  const int32_t side = config.tokens_per_side;
  const int32_t pool = config.patches_per_side() / side;  // patches per token
  const int32_t left = config.overlap_left / pool, right = config.overlap_right / pool;
  const int32_t step = side - left - right;  // tokens from one tile's start to the next one's
  const int32_t margins = (config.overlap_left + config.overlap_right) * config.patch_size;
  const int32_t window = config.crop_size - margins;

  MolmoImageLayout layout;
  const Tiling tiling = SelectTiling(height - margins, width - margins, window, config.max_crops);
  layout.tile_rows = tiling.rows;
  layout.tile_cols = tiling.cols;
  layout.crops = 1 + tiling.rows * tiling.cols;
  for (const auto& [h, w] :
       {std::pair(tiling.rows * window + margins, tiling.cols * window + margins),
        std::pair(config.crop_size, config.crop_size)}) {
    const ScaledSize scaled = FitInside(width, height, w, h);
    if (scaled.width < 1 || scaled.height < 1) {
      return absl::InvalidArgumentError(absl::StrCat("a picture of ", width, "x", height,
                                                     " pixels is too thin: it would shrink to ",
                                                     scaled.width, "x", scaled.height));
    }
  }

  const int32_t rows = tiling.rows * step + left + right;
  const int32_t cols = tiling.cols * step + left + right;
  AppendTokens(side, side, layout.tokens);
  AppendTokens(rows, cols, layout.tokens);

  // Position of the global crop's first patch: behind BOS and <im_start>; of the tiles' first
  // patch: behind the global part and a second <im_start>.
  constexpr int32_t kGlobal = 2;
  const int32_t tiles = kGlobal + side * (side + 1) + 1 + 1;
  layout.token_index.reserve(static_cast<size_t>(layout.crops) * config.tokens_per_crop());
  for (int32_t r = 0; r < side; ++r) {
    for (int32_t c = 0; c < side; ++c) layout.token_index.push_back(kGlobal + r * (side + 1) + c);
  }
  for (int32_t i = 0; i < tiling.rows; ++i) {
    for (int32_t j = 0; j < tiling.cols; ++j) {
      for (int32_t r = 0; r < side; ++r) {
        for (int32_t c = 0; c < side; ++c) {
          const bool kept = (i == 0 || r >= left) && (i == tiling.rows - 1 || r < side - right) &&
                            (j == 0 || c >= left) && (j == tiling.cols - 1 || c < side - right);
          layout.token_index.push_back(kept ? tiles + (step * i + r) * (cols + 1) + step * j + c
                                            : kDropped);
        }
      }
    }
  }
  return layout;
}

}  // namespace sensorium
