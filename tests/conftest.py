"What the tests share."
import os, shutil
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
    if len(data[0]) != 50_000: pytest.skip('all of MNIST is not here; set FB_PASS_DATA to a folder that has it')
    return data

BROWSERS = 'chromium', 'chromium-browser', 'google-chrome'

@pytest.fixture(scope='session')
def browser():
    "Chromium, one for all tests that need it: what the environment says, else the first on the path."
    from playwright.sync_api import sync_playwright
    found = os.environ.get('FB_PASS_CHROMIUM') or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.fail('no Chromium here: apt-get install chromium, or set FB_PASS_CHROMIUM to one', pytrace=False)
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=found, args=['--no-sandbox'])
        yield b
        b.close()
