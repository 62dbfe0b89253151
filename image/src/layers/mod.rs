//! The layers of an image: tar streams, and how they merge into one tree.
