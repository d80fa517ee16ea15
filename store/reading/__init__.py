"""Reading a cache: chunk files mapped side by side or read by a pool of threads; no decoding, no zarr, no torch."""
