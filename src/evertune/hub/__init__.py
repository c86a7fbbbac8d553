"""A learner's folder to and from a repository of the Hugging Face hub."""

from evertune.hub.pulling import pull
from evertune.hub.pushing import push

__all__ = ["pull", "push"]
