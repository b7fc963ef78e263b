"""Images in, batches out: `sources` -> `decode` -> `augment` -> `pipeline` on the host, `normalize`, `mix` on the device."""
