"""Digits of scikit-learn, with the test images and the training images drawn anew by a number each."""

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

TEST, VALIDATION = 360, 180  # images, as in the project's own split


def digits(test=0, train=0):
    """Return images and labels of three splits: `test` draws the test images, `train` divides the rest."""
    data = load_digits()
    images, labels = (data.images * 255 / 16).round().astype("uint8"), data.target
    rest, x_test, of_rest, y_test = train_test_split(
        images, labels, test_size=TEST, stratify=labels, random_state=test
    )
    x, x_val, y, y_val = train_test_split(
        rest, of_rest, test_size=VALIDATION, stratify=of_rest, random_state=1000 + train
    )
    return {"x": x, "y": y, "x_val": x_val, "y_val": y_val, "x_test": x_test, "y_test": y_test}
