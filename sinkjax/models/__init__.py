"""The models: config, decoder, rotary angles, sampling and shardings."""
