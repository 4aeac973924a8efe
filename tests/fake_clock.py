"""A clock of the test's own."""


class FakeClock:
    """Seconds that pass only when the test says so."""

    def __init__(self):
        self.now, self.rested = 100.0, []

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds

    def rest(self, seconds):
        self.rested.append(seconds)
        self.now += seconds
