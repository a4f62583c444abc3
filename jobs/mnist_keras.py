"""The tutorial's network for 28 × 28 digits in Keras: 1.2M parameters, softmax out."""

import keras
from keras import layers


def cnn() -> keras.Model:
    """Build it; the weights start as Keras draws them under the config's seed."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.SpatialDropout2D(0.25),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )
