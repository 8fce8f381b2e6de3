"How a convolutional network works, in NumPy: what the teaching notebooks build, one idea a module."
