"""Faults on a real cluster, under a reply: how soon they are noticed, how long the reply waits."""
