"Packaging, from settings.ini."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
statuses = {'1': '1 - Planning', '2': '2 - Pre-Alpha', '3': '3 - Alpha', '4': '4 - Beta', '5': '5 - Production/Stable'}
readme = here/'README.md'

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
    license_files=['LICENSE', 'data/README.md'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    classifiers=[f"Development Status :: {statuses[cfg['status']]}", f"Intended Audience :: {cfg['audience']}",
                 f"Natural Language :: {cfg['language']}", 'Programming Language :: Python :: 3'],
    python_requires=f">={cfg['min_python']}", install_requires=cfg['requirements'].split(),
    extras_require={k: cfg[f'{k}_requirements'].split() for k in ('dev', 'bench')},
    # The embedded samples lie in data/ in the repository and inside the package once it is installed.
    packages=['fb_pass', 'fb_pass.doctor', 'fb_pass.data'], package_dir={'fb_pass': 'fb_pass', 'fb_pass.data': 'data'},
    package_data={'fb_pass': ['py.typed', 'assets/*'], 'fb_pass.doctor': ['*.css'],
                  'fb_pass.data': ['mnist_sample.npz', 'shakespeare.txt', 'README.md']},
    # Where nbdev looks up the names of the package to link them in the documentation; the plugin that pytest loads.
    entry_points={'nbdev': ['fb_pass=fb_pass._modidx:d'], 'pytest11': ['fb_pass=fb_pass.doctor.plugin']},
    zip_safe=False,
)
