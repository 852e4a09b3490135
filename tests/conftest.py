"What the tests share."
import os
from pathlib import Path

import pytest

# A test that wants a download serves it itself, from the loopback address.
os.environ['FB_PASS_OFFLINE'] = '1'

@pytest.fixture(scope='session')
def root():
    "The checkout."
    return Path(__file__).resolve().parent.parent

@pytest.fixture(scope='session')
def mnist():
    "All of MNIST: x_train, y_train, x_valid, y_valid."
    from fb_pass.datasets import get_data
    data = get_data()
    if len(data[0]) != 50_000: pytest.skip('all of MNIST is not here; set FB_PASS_DATA to the folder that has it')
    return data
