"The app and the page of an answer in a real browser: what a reader sees, and that nothing is asked of others or kept."
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable

import pytest

NAMES = os.environ.get('ICH_CHROMIUM', ''), 'chromium', 'chromium-browser', 'google-chrome', 'chrome'
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
if CHROMIUM is None: pytest.skip('there is no Chromium (name one in ICH_CHROMIUM)', allow_module_level=True)
pytest.importorskip('gradio', reason='the app needs Gradio: ich_fastai[app]')
client = pytest.importorskip('websockets.sync.client', reason='the browser is driven over websockets (part of Gradio)')

LOCAL = ('http://127.0.0.1', 'file:', 'data:', 'blob:', 'about:', 'chrome')
SPY = ('import sys\n'  # says on stderr to whom a socket is opened
       'def spy(event, args):\n'
       '    if event in ("socket.connect", "socket.getaddrinfo"):\n'
       '        where = args[1][0] if isinstance(args[1], tuple) else "127.0.0.1"\n'
       '        who = args[0] if event == "socket.getaddrinfo" else where\n'
       '        if who in ("127.0.0.1", "localhost", "::1", None): return\n'
       '        print("ASKED", who, file=sys.stderr, flush=True)\n'
       'sys.addaudithook(spy)\nfrom ich_fastai.cli import main\nraise SystemExit(main())')


class Browser:
    "One page of a headless Chromium, driven by the DevTools protocol."
    def __init__(self, home):
        args = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
                '--disable-background-networking', '--disable-features=IsolateSandboxedIframes',
                '--remote-debugging-port=0', f'--user-data-dir={home}', 'about:blank']
        self.process = subprocess.Popen([CHROMIUM, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            active = home/'DevToolsActivePort'
            wait(lambda: active.is_file() and len(active.read_text().split()) > 1, 30)
            port = active.read_text().split()[0]
            pages = json.load(urllib.request.urlopen(f'http://127.0.0.1:{port}/json/list', timeout=10))
            url = next(o for o in pages if o['type'] == 'page')['webSocketDebuggerUrl']
            self.ws = client.connect(url, max_size=None)
            self.n, self.asked = 0, []
            for o in 'Page', 'Network', 'Runtime', 'DOM': self.do(f'{o}.enable')
        except BaseException:
            self.process.kill()
            raise

    def do(self, method: str, **params) -> dict:
        self.n += 1
        self.ws.send(json.dumps(dict(id=self.n, method=method, params=params)))
        while True:
            got = json.loads(self.ws.recv(timeout=60))
            if got.get('method') == 'Network.requestWillBeSent': self.asked.append(got['params']['request']['url'])
            if got.get('id') == self.n:
                assert 'error' not in got, (method, got)
                return got['result']

    def js(self, code: str, frame: str|None = None):
        where = {}
        if frame: where = dict(contextId=self.do('Page.createIsolatedWorld', frameId=frame)['executionContextId'])
        got = self.do('Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True, **where)
        assert 'exceptionDetails' not in got, got['exceptionDetails']
        return got['result'].get('value')

    def open(self, url: str, ready: str, width: int = 1280, height: int = 900) -> None:
        self.do('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.do('Page.navigate', url=url)
        wait(lambda: self.js('document.readyState') == 'complete' and self.js(f'!!({ready})'), 60)

    def press(self, key: str, code: int) -> None:
        for o in 'rawKeyDown', 'keyUp':
            self.do('Input.dispatchKeyEvent', type=o, key=key, code=key, windowsVirtualKeyCode=code)

    def drop(self, *files) -> None:
        got = self.do('Runtime.evaluate', expression="document.querySelector('input[type=file]')")['result']
        self.do('DOM.setFileInputFiles', files=[str(o) for o in files], objectId=got['objectId'])

    def frame(self) -> dict: return self.do('Page.getFrameTree')['frameTree']['childFrames'][0]['frame']

    def close(self) -> None:
        self.ws.close()
        self.process.terminate()
        self.process.wait(20)


def wait(done: Callable, seconds: float):
    "Wait until something is so."
    until = time.monotonic() + seconds
    while not (got := done()):
        assert time.monotonic() < until, f'not so after {seconds} s'
        time.sleep(.1)
    return got


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp('browser'))
    yield one
    one.close()


@pytest.fixture(scope='module')
def app(folder, tmp_path_factory):
    "`ich app` with a limit of 4 MB; its address, and the folder for all its temporary files."
    tmp = tmp_path_factory.mktemp('app')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith('GRADIO')} | dict(OMP_NUM_THREADS='1')
    env |= dict.fromkeys(('TMPDIR', 'TEMP', 'HOME', 'XDG_CACHE_HOME'), str(tmp))
    args = [sys.executable, '-c', SPY, 'app', str(folder), '--port', str(port), '--limit', '4']
    one = subprocess.Popen(args, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    line = one.stdout.readline()
    yield line, f'http://127.0.0.1:{port}/', tmp
    one.terminate()
    err = one.communicate(timeout=20)[1]
    assert 'Traceback' not in err and 'ASKED' not in err, err[-3000:]


def kept(tmp):
    "Files that are left, without Matplotlib's list of fonts."
    return [o for o in tmp.rglob('*') if o.is_file() and o.stat().st_size and 'matplotlib' not in o.parts]


BUTTON = "[...document.querySelectorAll('button')].find(o => o.innerText.trim() == 'Answer')"
SAID = "[...document.querySelectorAll('[role=alert]')].map(o => o.innerText).join(' ')"


def ask(browser, url, *files, width=1280):
    "Drop files and press the button."
    browser.open(url, f"{BUTTON} && document.querySelector('input[type=file]')", width)
    if files:
        browser.drop(*files)
        wait(lambda: browser.js(f"document.body.innerText.includes({json.dumps(files[0].stem[:8])})"), 30)
    browser.js(f'{BUTTON}.click()')


@pytest.mark.parametrize('width', [1280, 390])
def test_a_zip_gives_the_page(app, browser, scan, tmp_path, width):
    line, url, tmp = app
    assert url.rstrip('/') in line and 'share' not in line
    with zipfile.ZipFile(tmp_path/'patient.zip', 'w') as z:
        for o in sorted(scan.iterdir()): z.write(o, o.name)
    browser.asked.clear()
    ask(browser, url, tmp_path/'patient.zip', width=width)
    wait(lambda: browser.js("!!document.querySelector('iframe[title=Answer]')"), 60)
    wait(lambda: browser.js("document.querySelector('h1')?.innerText", browser.frame()['id']), 20)
    assert 'Not a medical device' in browser.js('document.body.innerText', browser.frame()['id'])
    browser.js("document.querySelector('a.skip').click()", browser.frame()['id'])  # a link within the page stays in it
    time.sleep(.5)
    assert browser.frame()['url'].startswith('about:srcdoc')
    assert 'what the network says' in browser.js('document.body.innerText', browser.frame()['id'])
    assert browser.js('document.documentElement.scrollWidth') <= width
    assert browser.asked and [o for o in browser.asked if not o.startswith(LOCAL)] == []
    assert kept(tmp) == []  # neither the scan, nor the answer, nor what a library would have told about it


def test_what_is_no_scan_gives_a_sentence(app, browser, tmp_path):
    _, url, tmp = app
    ask(browser, url)
    wait(lambda: 'Drop a zip archive' in browser.js(SAID), 20)
    (tmp_path/'letter.txt').write_text('no scan')
    ask(browser, url, tmp_path/'letter.txt')
    wait(lambda: '1 not_dicom' in browser.js(SAID), 30)
    assert kept(tmp) == []


def test_what_is_too_large_is_refused(app, browser, tmp_path):
    "The browser refuses one file before it is sent; the app refuses several together, and one sent past the browser."
    _, url, tmp = app
    for i in range(2): (tmp_path/f'large{i}.dcm').write_bytes(bytes(3_000_000))
    ask(browser, url, *sorted(tmp_path.glob('large*')))
    wait(lambda: '6 MB were dropped, and 4 MB are allowed' in browser.js(SAID), 30)
    with open(tmp_path/'huge.zip', 'wb') as f: f.truncate(2 << 30)
    browser.open(url, f"{BUTTON} && document.querySelector('input[type=file]')")
    browser.drop(tmp_path/'huge.zip')
    wait(lambda: 'exceed the maximum allowed size' in browser.js('document.body.innerText'), 30)
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.dcm"\r\n\r\n'
    kind = {'Content-Type': 'multipart/form-data; boundary=x'}
    sent = urllib.request.Request(f'{url}gradio_api/upload', head + bytes(5_000_000) + b'\r\n--x--\r\n', kind)
    with pytest.raises(urllib.error.HTTPError) as e: urllib.request.urlopen(sent, timeout=30)
    assert e.value.code == 413 and kept(tmp) == []


def test_only_this_machine_sees_it(app):
    line, url, _ = app
    port = int(url.rstrip('/').rsplit(':', 1)[1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(('192.0.2.1', 9))  # sends nothing; tells the address of this machine
            own = s.getsockname()[0]
        except OSError: pytest.skip('this machine has no other address')
    if own.startswith('127.'): pytest.skip('this machine has no other address')
    with pytest.raises(OSError): socket.create_connection((own, port), timeout=3)


def test_the_page_on_a_screen_a_phone_and_paper(folder, browser, scan, tmp_path):
    from ich_fastai.infer.page import write_answer
    (scan/('a_note_' + 'without_a_blank_' * 12 + '.txt')).write_text('x')
    write_answer(folder, scan, tmp_path/'out')
    url = (tmp_path/'out'/'prediction.html').as_uri()
    browser.asked.clear()
    for width in 1280, 390:
        browser.open(url, 'document.images.length > 6', width)
        browser.js("document.querySelectorAll('details').forEach(o => o.open = true)")
        assert browser.js('document.documentElement.scrollWidth') <= width
        assert browser.js('[...document.images].every(o => o.alt && o.naturalWidth)')
    assert {o for o in browser.asked if not o.startswith('data:')} == {url}
    browser.open(url, 'document.images.length > 6')
    look = "o.innerText.slice(0, 30) + '|' + getComputedStyle(o).outlineStyle"
    places = []
    for _ in range(12):
        browser.press('Tab', 9)
        places.append(browser.js(f"(o => o == document.body ? '' : {look})(document.activeElement)"))
        if not places[-1]: break
    assert places[0] == 'Skip to the answer|solid' and places[-1] == '' and len(places) >= 4, places
    assert all(o.endswith('|solid') for o in places[:-1]), places
    pdf = base64.b64decode(browser.do('Page.printToPDF', preferCSSPageSize=True)['data'])
    assert 2 <= pdf.count(b'/Type /Page\n') <= 8 and pdf.count(b'/Subtype /Image') >= 6
    browser.do('Emulation.setEmulatedMedia', media='print')
    a4 = dict(width=688, height=1000)  # without its margins
    browser.do('Emulation.setDeviceMetricsOverride', **a4, deviceScaleFactor=1, mobile=False)
    assert browser.js('document.documentElement.scrollWidth') <= 688
    browser.do('Emulation.setEmulatedMedia', media='')
