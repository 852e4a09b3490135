"Print constraints.txt: the exact versions, here installed, of what settings.ini asks for and of what that asks for."
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

header = '''\
# The tested set, exact: made on Python {python} by `.venv/bin/python tools/freeze.py`.
# A version that needs a newer Python than {oldest} says so; an older Python takes the newest that fits, untested.
# torch without a suffix: where an index has the build for CPU only, pip takes that one, and no CUDA libraries with it.
'''

def installed(reqs, extras, found):
    "Add to `found` the distributions that `reqs` lead to."
    for r in map(Requirement, reqs):
        if r.marker and not any(r.marker.evaluate({'extra': e}) for e in extras or {''}): continue
        name = canonicalize_name(r.name)
        new = {''} | r.extras
        if name in found and new <= found[name]: continue
        found[name] = found.get(name, set()) | new
        installed(distribution(name).requires or (), new, found)
    return found

def pin(name, oldest):
    "The line for one distribution."
    d = distribution(name)
    line = f"{name}=={Version(d.version).public}"
    needs = [s.version for s in SpecifierSet(d.metadata['Requires-Python'] or '') if s.operator in ('>=', '>')]
    newest = max(map(Version, needs), default=Version('0'))
    return f"{line}; python_full_version >= '{newest}'" if newest > Version(oldest) else line

if __name__ == '__main__':
    import platform
    ini = ConfigParser(delimiters=['='])
    ini.read(Path(__file__).parent.parent/'settings.ini', encoding='utf-8')
    cfg = ini['DEFAULT']
    reqs = ' '.join(cfg[k] for k in ('requirements', 'dev_requirements', 'bench_requirements')).split()
    print(header.format(python=platform.python_version(), oldest=cfg['min_python']), end='')
    for name in sorted(installed(reqs, {''}, {})): print(pin(name, cfg['min_python']))
