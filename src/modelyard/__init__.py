"""modelyard: from a bare machine to a trained, honestly evaluated and deployed Transformer."""
