"""Images in, batches out: `sources` -> `decode` -> `augment` -> `pipeline` on the host, `normalize` on the device."""
