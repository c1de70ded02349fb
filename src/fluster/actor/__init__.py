"""Objects of other processes: hosted by an `ActorServer`, found by name, called through proxies."""
