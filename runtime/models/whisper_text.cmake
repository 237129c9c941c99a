# Ids and log-probabilities only: no device, no network. The engine's tests link it alone.
find_package(ZLIB REQUIRED)
add_library(whisper_text
  compression_ratio.cc compression_ratio.h
  whisper_transcription.cc whisper_transcription.h
  whisper_vocabulary.cc whisper_vocabulary.h
  whisper_window_decoder.cc whisper_window_decoder.h)
target_link_libraries(whisper_text
  PUBLIC tokenizer backend base absl::status absl::statusor
  PRIVATE ZLIB::ZLIB absl::strings)
