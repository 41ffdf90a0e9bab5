"""Reading Llama weights from wherever they lie, and writing them."""
