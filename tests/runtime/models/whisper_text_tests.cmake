# One binary per file of the library whisper_text; none needs a model.
sensorium_test(compression_ratio_test SOURCES compression_ratio_test.cc LIBS whisper_text)
sensorium_test(whisper_vocabulary_test
  SOURCES whisper_vocabulary_test.cc byte_vocabulary.h LIBS whisper_text)
sensorium_test(whisper_window_decoder_test
  SOURCES whisper_window_decoder_test.cc byte_vocabulary.h LIBS whisper_text cpu)
sensorium_test(whisper_transcription_test
  SOURCES whisper_transcription_test.cc byte_vocabulary.h LIBS whisper_text)
