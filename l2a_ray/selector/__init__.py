"""The Selector: a network that scores a pair of clips without compositing it, and streaming top-K selection."""
