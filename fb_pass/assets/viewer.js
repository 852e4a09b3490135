// Show one step at a time: buttons, slider, arrow keys and the links at the top all call `go`.
for (const view of document.querySelectorAll('[data-view="fb-view"]:not(.live)')) {
  const steps = [...view.querySelectorAll('.step')]
  const links = [...view.querySelectorAll('[data-step]')]
  const bar = view.querySelector('.controls')
  const slider = bar.querySelector('input')
  const where = view.querySelector('.where')
  let now = 0
  const mark = chip => {
    chip.classList.toggle('past', chip.dataset.step <= now)
    chip.removeAttribute('aria-current')
    if (chip.dataset.step != now + 1) return
    chip.setAttribute('aria-current', 'step')
    chip.parentNode.scrollLeft = chip.offsetLeft - chip.parentNode.clientWidth/2
  }
  const go = i => {
    now = Math.max(0, Math.min(steps.length - 1, i))
    steps.forEach((s, k) => s.hidden = k != now)
    links.filter(a => a.matches('.chip')).forEach(mark)
    slider.value = now + 1
    where.textContent = steps[now].dataset.where
    slider.setAttribute('aria-valuetext', where.textContent)
  }
  const moves = {ArrowLeft: () => now - 1, ArrowRight: () => now + 1, Home: () => 0, End: () => steps.length - 1}
  const press = e => {
    if (!(e.key in moves) || e.target == slider || e.ctrlKey || e.metaKey || e.altKey || e.shiftKey) return
    e.preventDefault()
    e.stopPropagation()
    go(moves[e.key]())
  }
  links.forEach(a => a.addEventListener('click', e => { e.preventDefault(); go(a.dataset.step - 1) }))
  bar.querySelectorAll('button').forEach(b => b.addEventListener('click', () => go(now + +b.value)))
  slider.addEventListener('input', () => go(slider.value - 1))
  ;(document.body.matches('.fb-page') ? document : view).addEventListener('keydown', press)
  view.classList.add('live')
  bar.hidden = false
  go(0)
}
