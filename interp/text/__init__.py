"""Text and tokens: tokenizers, their files, documents."""
