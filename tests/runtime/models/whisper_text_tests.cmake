# One binary per file of the library whisper_text; none needs a model.
