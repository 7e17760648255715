"""The chain as a graph of steps: what each is made from, how it is kept, and a runner that makes what is missing."""
