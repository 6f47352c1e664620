"""Code that publishing a release and publishing a model share: the upload to the Hub, and harmless Markdown."""
