"""Sources of data: what a text with options, such as `folder(path='photos')`, is read from."""
