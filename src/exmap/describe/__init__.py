"""What is in a group of images: how they differ from the others of their class, in numbers and in one sentence."""

from exmap.describe.strategies import describe

__all__ = ["describe"]
